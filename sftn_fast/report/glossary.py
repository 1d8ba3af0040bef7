"""Definitions of the column headings in the report's tables."""

from __future__ import annotations

from collections.abc import Sequence

DEFINITIONS = {
    "network": "Architecture of the trained network.",
    "top-1 last %": "Top-1 accuracy on the test images after the last epoch: mean ± sample standard deviation over the "
    "seeds.",
    "top-1 best %": "Top-1 accuracy on the test images after the best epoch, the one with the highest accuracy on the "
    "validation split. Without a validation split it is chosen on the test images themselves, an optimistic choice.",
    "agreement %": "Test images for which student and teacher predict the same class, right or wrong. A student alone "
    "is compared with the standard teacher.",
    "KL(teacher, student)": "Mean Kullback-Leibler divergence KL(teacher || student) of the class probabilities on the "
    "test images, at temperature 1, in nats. 0 if they are equal.",
    "CKA": "Linear centred kernel alignment between the pooled features of student and teacher on the test images: 1 "
    "for the same geometry, near 0 for unrelated ones.",
    "n": "Number of seeds. Each seed trains its own networks.",
    "method": "Losses of the student, in the notation of --distill.",
    "standard teacher": "Top-1 after the last epoch of the students of a conventionally trained teacher.",
    "early teacher": "Top-1 after the last epoch of the students of the standard teacher of an earlier epoch.",
    "SoTeacher": "Top-1 after the last epoch of the students of a teacher trained with SoTeacher's two regularisers.",
    "SFTN teacher": "Top-1 after the last epoch of the students of a student-friendly teacher.",
    "gain of SFTN": "Top-1 of the SFTN teacher's students minus that of the standard teacher's students, paired by "
    "seed, in points: mean ± sample standard deviation.",
    "95 % CI": "Confidence interval of the gain by Student's t, for each method alone (not corrected). An interval "
    "that contains 0 is no evidence of a difference. A dash for a single seed.",
    "p (Holm)": "Two-sided paired t-test of the gain against 0, Holm-corrected for the number of methods. From three "
    "seeds on.",
    "calibration error %": "Expected calibration error of the student: mean distance between confidence and accuracy "
    "over 15 bins of confidence.",
    "published": "Top-1 that the named project reports for a student of a standard teacher.",
    "gap": "Top-1 of the standard teacher's students minus the published accuracy, in points.",
    "seconds": "Time of a training with its start, evaluations and checkpoints.",
    "images/s": "Training images per second, without evaluation.",
    "waiting for data": "Share of the training time spent waiting for the next batch.",
    "device seconds": "Seconds multiplied by the number of devices.",
    "of all seeds": "Device seconds of all seeds together.",
    "training": "Which network was trained, by its role in the experiment.",
    "seed": "Determines initial weights, order of the images and augmentation.",
    "parameters": "Number of parameters of the network.",
    "epochs": "Passes over the training images.",
    "finished": "End of the training.",
    "class": "Class of the test images, by name if the data set has class names, otherwise by number.",
    "images": "Test images of the class. The columns to the right give the accuracy on them, in percent.",
}


def define(headings: Sequence[str]) -> dict[str, str]:
    """Return the definitions of ``headings``, each once and in their order.

    In a table of classes only the first two columns have definitions. The others are networks.
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
