"""What the headings of the report's tables mean."""

from __future__ import annotations

from collections.abc import Sequence

DEFINITIONS = {
    "network": "Name of the network that was trained.",
    "top-1 last %": "Test images whose most likely class is the right one, after the last epoch: mean ± sample "
    "deviation over the seeds.",
    "top-1 best %": "The same after the best epoch: the one with the highest accuracy on the validation split, or on "
    "the test images where no validation split was held out. It is then chosen on the images that it is measured on.",
    "agreement %": "Test images for which student and teacher choose the same class, right or wrong. A student alone "
    "is compared with the standard teacher.",
    "KL(teacher, student)": "Mean Kullback-Leibler divergence of the student's class probabilities from the "
    "teacher's on the test images, at temperature 1, in nats. 0 if they are the same.",
    "CKA": "Linear centred kernel alignment of the pooled features of student and teacher on the test images: 1 if "
    "they arrange the images alike, about 0 if the arrangements have nothing in common.",
    "n": "Seeds. Each seed trains a network of its own.",
    "method": "Losses of the student, as --distill takes them.",
    "standard teacher": "Top-1 after the last epoch of the students of a teacher that was trained as usual.",
    "SFTN teacher": "Top-1 after the last epoch of the students of a student-friendly teacher.",
    "gain of SFTN": "Top-1 of the SFTN teacher's students minus that of the standard teacher's, paired by seed, in "
    "points: mean ± sample deviation.",
    "95 % CI": "Interval of that gain by Student's t, for each method alone. If it contains 0, the seeds show no "
    "difference. A dash for a single seed.",
    "p (Holm)": "Two-sided paired t-test of the gain against 0, corrected for the number of methods. From three seeds "
    "on.",
    "calibration error %": "How far the student's confidence is from its accuracy: mean over 15 bins of confidence.",
    "published": "Top-1 that the named project reports for a student of a standard teacher.",
    "gap": "Top-1 of the standard teacher's students minus the published one.",
    "seconds": "Time of the training, evaluations included.",
    "images/s": "Training images a second, evaluations not counted.",
    "waiting for data": "Share of the training time in which the next batch was not there yet.",
    "device seconds": "Seconds times the devices that trained together.",
    "of all seeds": "Device seconds of all seeds together.",
    "run": "What was trained.",
    "seed": "Decides the first weights, the order of the images and their augmentation.",
    "parameters": "Numbers that the network has learned.",
    "epochs": "Passes over the training images.",
    "finished": "When the training ended.",
    "class": "Class of the test images, by name where the data set has names, else by number.",
    "images": "Test images of that class. The columns beside it give the share of them that is recognised, in percent.",
}


def define(headings: Sequence[str]) -> dict[str, str]:
    """Return the definitions of those of ``headings`` that need one, each once, in their order.

    In a table of classes the other columns are networks, which need none.
    """
    found = {}
    if headings[:1] == ["class"]:
        headings = headings[:2]
    for heading in headings:
        name = heading.removesuffix(", standard / SFTN")
        name = "KL(teacher, student)" if name == "KL" else name
        if name in DEFINITIONS:
            found[name] = DEFINITIONS[name]
    return found
