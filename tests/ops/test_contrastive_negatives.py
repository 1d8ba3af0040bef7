"""sample_negatives: the same numbers on every backend, of other classes, distinct, in order and uniform."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from families import FAKES, needs_kernels, on_threads, refusals
from simt.contrastive_negatives_cases import CASES, LARGE_CASES, Case, oracle

from sftn_fast import ops
from sftn_fast.ops import _library
from sftn_fast.ops.reference import contrastive_negatives as reference

LABELS = torch.arange(60) % 6
INDEX = torch.tensor([0, 7, 59, 7])


GOLDEN = {
    3: [[2, 10, 26], [2, 29, 52]],
    6: [[1, 17, 26, 46, 49, 56], [2, 6, 10, 11, 28, 30]],
}  # draws only; coins and draws


def seeded(seed, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def sample(backend, index=INDEX, labels=LABELS, count=12, seed=0, **options):
    """Sample with a given seed and return the result on the CPU."""
    index, labels = index.to(backend.device), labels.to(backend.device)
    generator = seeded(seed, index.device)
    return ops.sample_negatives(index, labels, count, generator=generator, **options).cpu()


def check(negatives, index, labels):
    assert (labels[negatives] != labels[index].unsqueeze(1)).all()
    assert (negatives.diff(dim=1) > 0).all()


# ---- which numbers ----


@pytest.mark.parametrize("case", [*CASES, *LARGE_CASES], ids=str)
def test_same_numbers_everywhere(backend, case: Case, monkeypatch):
    key, index, labels = case.inputs()
    monkeypatch.setattr(reference, "draw_key", lambda device, generator: key.to(device))
    dtype = torch.int32 if case.as_int32 else torch.int64
    negatives = ops.sample_negatives(
        index.to(backend.device), labels.to(backend.device), case.negatives, dtype=dtype
    ).cpu()
    assert negatives.dtype == dtype
    assert torch.equal(negatives.long(), oracle(key, index, labels, case.negatives))


def test_splitmix64s_own_values():
    """The first outputs of the state 0 are those of the authors' C code."""
    words = reference._random_words(torch.zeros(1, dtype=torch.int64), 0, 3).tolist()
    assert [word % 2**64 for word in words] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("count", GOLDEN)
def test_golden(backend, count, monkeypatch):
    """A run resumed with another version must draw the same negatives."""
    monkeypatch.setattr(reference, "draw_key", lambda device, generator: torch.tensor([2026], device=device))
    negatives = ops.sample_negatives(INDEX[:2].to(backend.device), LABELS.to(backend.device), count)
    assert negatives.tolist() == GOLDEN[count]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_of_other_classes_distinct_and_in_order(backend, dtype):
    for count in (1, 12, 49, 50):
        negatives = sample(backend, count=count, dtype=dtype)
        assert negatives.shape == (4, count)
        assert negatives.dtype == dtype
        check(negatives, INDEX, LABELS)


def test_all_candidates(backend):
    everything = sample(backend, count=50)
    for row, position in zip(everything, INDEX, strict=True):
        assert torch.equal(row, (LABELS[position] != LABELS).nonzero().squeeze(1))


def test_too_few_candidates_are_drawn_with_replacement(backend):
    labels = torch.tensor([3, 3, 5, 3, 5])
    negatives = sample(backend, torch.tensor([0, 2]), labels, 300)
    assert (negatives.diff(dim=1) >= 0).all()
    assert negatives[0].unique().tolist() == [2, 4]
    assert negatives[1].unique().tolist() == [0, 1, 3]
    counts = negatives[1].bincount(minlength=5)[[0, 1, 3]]
    assert ((counts - 100).abs() < 5 * math.sqrt(300 * 2 / 9)).all()


def test_two_samples(backend):
    labels, index = torch.tensor([8, -8]), torch.tensor([1, 0, 1])
    assert sample(backend, index, labels, 1).tolist() == [[0], [1], [0]]
    assert sample(backend, index, labels, 3).tolist() == [[0] * 3, [1] * 3, [0] * 3]


@pytest.mark.parametrize("share", [0.02, 0.98])
def test_classes_of_very_different_size(backend, share):
    labels = (torch.rand(1000, generator=seeded(1)) < share).long()
    index = torch.stack([labels.argmin(), labels.argmax()])
    check(sample(backend, index, labels, 8), index, labels)


@pytest.mark.parametrize("names", [[-5, 2**62, 17], [-(2**63), 2**63 - 1, 0], [0, 2**32, 2**33]])
def test_labels_are_any_numbers(backend, names):
    labels = torch.tensor(names)[torch.arange(90) % 3]
    check(sample(backend, labels=labels), INDEX, labels)


def test_every_sample_is_its_own_class(backend):
    labels = torch.randperm(400, generator=seeded(2)) * 3 - 100
    index = torch.arange(64)
    check(sample(backend, index, labels, 20), index, labels)


@pytest.mark.parametrize(("rows", "count"), [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_draw(backend, rows, count):
    index = torch.zeros(rows, dtype=torch.int64)
    assert sample(backend, index, LABELS, count).shape == (rows, count)
    assert sample(backend, index[:0], LABELS[:0], count).shape == (0, count)
    one_class = torch.zeros(4, dtype=torch.int64)
    assert sample(backend, index - 1, one_class, count).shape == (rows, count)


def test_strides(backend):
    index, labels = INDEX.repeat_interleave(2)[::2], torch.stack([LABELS, -LABELS], 1)[:, 0]
    assert torch.equal(sample(backend, index, labels), sample(backend))
    expanded = INDEX[:1].expand(3)
    assert torch.equal(sample(backend, expanded), sample(backend, expanded.contiguous()))


def test_inputs_stay_as_they_are(backend):
    index, labels = INDEX.to(backend.device).clone(), LABELS.to(backend.device).clone()
    ops.sample_negatives(index, labels, 12)
    assert torch.equal(index.cpu(), INDEX)
    assert torch.equal(labels.cpu(), LABELS)


def test_labels_that_change_in_place(backend):
    """Nothing is kept between calls, so that writes to the labels take effect."""
    labels = LABELS.clone().to(backend.device)
    ops.sample_negatives(INDEX.to(backend.device), labels, 12)
    labels.data.copy_((LABELS + torch.arange(60) // 30) % 6)
    check(sample(backend, labels=labels), INDEX, labels.cpu())


# ---- what they depend on ----


def test_generator(backend):
    index, labels = INDEX.to(backend.device), LABELS.to(backend.device)
    generator = seeded(3, index.device)
    first, second = (ops.sample_negatives(index, labels, 12, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    generator.manual_seed(3)
    assert torch.equal(ops.sample_negatives(index, labels, 12, generator=generator), first)
    state = generator.get_state()
    ops.sample_negatives(index, labels, 30, generator=generator)
    assert not torch.equal(generator.get_state(), state)
    generator.set_state(state)
    assert torch.equal(ops.sample_negatives(index, labels, 12, generator=generator), second)


def test_default_generator(backend):
    index, labels = INDEX.to(backend.device), LABELS.to(backend.device)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        first, second = (ops.sample_negatives(index, labels, 12) for _ in range(2))
        torch.manual_seed(4)
        assert torch.equal(ops.sample_negatives(index, labels, 12), first)
    assert not torch.equal(first, second)
    generator = seeded(4, index.device)
    assert torch.equal(ops.sample_negatives(index, labels, 12, generator=generator), first)


def test_rows_do_not_depend_on_the_batch(backend):
    index = torch.arange(0, 60, 5)
    whole = sample(backend, index)
    for size in (1, 5):
        assert torch.equal(sample(backend, index[:size]), whole[:size])
    assert not torch.equal(whole[0], whole[6])  # of the same class: the row's number counts too


@needs_kernels
def test_same_numbers_whatever_the_threads():
    labels = torch.randint(50, (100_000,), generator=seeded(5))
    index = torch.randint(100_000, (33,), generator=seeded(6))
    results = on_threads(lambda: ops.sample_negatives(index, labels, 3000, generator=seeded(7)))
    check(results[0], index, labels)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_kernels
def test_as_many_as_imagenet():
    labels = torch.randint(1000, (1_281_167,), generator=seeded(8))
    index = torch.randint(1_281_167, (8,), generator=seeded(9))
    negatives = ops.sample_negatives(index, labels, 16384, generator=seeded(10), dtype=torch.int32)
    check(negatives.long(), index, labels)
    per_bin = torch.bincount(negatives.flatten() // 12812, minlength=100).double()
    assert z_scores(per_bin, negatives.numel(), 0.01).abs().max() < 4.5


# ---- whether they are uniform: the kernels', which the tests above find equal to each other ----


def z_scores(counts, trials, probability):
    """Return the deviation of each count from its expectation, in standard deviations."""
    return (counts - trials * probability) / math.sqrt(trials * probability * (1 - probability))


def draw_rows(candidates, count, rows, seed):
    """Return [rows, candidates] of 0 and 1: the candidates taken by each of many independent rows."""
    labels = torch.ones(candidates + 3, dtype=torch.int64)
    labels[[0, candidates // 2, candidates + 2]] = 0
    negatives = ops.sample_negatives(torch.zeros(rows, dtype=torch.int64), labels, count, generator=seeded(seed))
    taken = torch.zeros(rows, candidates + 3, dtype=torch.float64).scatter_(1, negatives, 1)
    return taken[:, labels == 1]


@needs_kernels
@pytest.mark.parametrize("count", [1, 3, 4, 5, 7])
def test_every_subset_is_as_likely(count):
    rows, candidates = 100_000, 8
    taken = draw_rows(candidates, count, rows, seed=count)
    codes = (taken * 2.0 ** torch.arange(candidates)).sum(1).long()
    subsets = [sum(2**i for i in chosen) for chosen in itertools.combinations(range(candidates), count)]
    observed = codes.bincount(minlength=2**candidates)[subsets].double()
    assert observed.sum() == rows
    expected = rows / len(subsets)
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    freedom = len(subsets) - 1
    assert abs(statistic - freedom) < 4.5 * math.sqrt(2 * freedom)


@needs_kernels
@pytest.mark.parametrize(("candidates", "count"), [(40, 10), (40, 30), (500, 20), (130, 64)])
def test_samples_and_pairs_are_as_likely_as_any_other(candidates, count):
    rows, share = 20_000, count / candidates
    taken = draw_rows(candidates, count, rows, seed=candidates + count)
    assert z_scores(taken.sum(0), rows, share).abs().max() < 4.5
    centred = taken - share  # so that only the dependence within a pair counts
    pairs = (centred.T @ centred)[tuple(torch.triu_indices(candidates, candidates, offset=1))] / rows
    both = share * (count - 1) / (candidates - 1)
    mean = both - share**2
    square = (1 - 2 * share) ** 2 * both + 2 * (1 - 2 * share) * share**3 + share**4
    z = (pairs - mean) / math.sqrt((square - mean**2) / rows)
    assert z.abs().max() < 5.5
    assert z.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / len(z)))


@needs_kernels
def test_rows_and_calls_are_independent():
    """The number of negatives that neighbours, or the same row of two calls, share is hypergeometric."""
    candidates, count, rows = 200, 50, 20_000
    first, second = (draw_rows(candidates, count, rows, seed) for seed in (1, 2))
    share = count / candidates
    deviation = math.sqrt(count * share * (1 - share) * (candidates - count) / (candidates - 1))
    for a, b in ((first[:-1], first[1:]), (first, second)):
        common = (a * b).sum(1)
        assert abs(common.mean().item() - count * share) < 4 * deviation / math.sqrt(rows)
        assert common.std().item() == pytest.approx(deviation, rel=0.03)


# ---- compilers ----


@needs_kernels
@pytest.mark.parametrize("as_int32", [False, True])
def test_opcheck(as_int32):
    torch.library.opcheck(
        torch.ops.sftn_fast.sample_negatives.default, (torch.tensor([5]), INDEX, LABELS, 7, as_int32), test_utils=FAKES
    )


@needs_kernels
def test_traced_whole():
    torch._dynamo.reset()
    compiled = torch.compile(lambda i, y: ops.sample_negatives(i, y, 12), fullgraph=True, backend="aot_eager")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        eager = ops.sample_negatives(INDEX, LABELS, 12)
        torch.manual_seed(0)
        first, second = compiled(INDEX, LABELS), compiled(INDEX, LABELS)
    assert torch.equal(first, eager)
    assert not torch.equal(first, second)


@pytest.mark.skipif(not (torch.cuda.is_available() and _library.CUDA.loaded), reason="no GPU, or no CUDA kernels")
def test_cuda_graph():
    """Each replay draws new negatives."""
    index, labels = INDEX.cuda(), LABELS.cuda()
    ops.sample_negatives(index, labels, 12)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        negatives = ops.sample_negatives(index, labels, 12)
    replays = []
    for _ in range(2):
        graph.replay()
        replays.append(negatives.cpu())
        check(replays[-1], INDEX, LABELS)
    assert not torch.equal(*replays)


# ---- what is refused ----

TYPE_ERRORS = {
    "index a list": (lambda: ops.sample_negatives([0], LABELS, 2), "index must be a tensor, got list"),
    "index int32": (lambda: ops.sample_negatives(INDEX.int(), LABELS, 2), "index must be int64, got torch.int32"),
    "labels float": (lambda: ops.sample_negatives(INDEX, LABELS.float(), 2), "labels must be int64, got torch.float32"),
    "count float": (lambda: ops.sample_negatives(INDEX, LABELS, 2.0), "num_negatives must be an int, got float"),
    "count bool": (lambda: ops.sample_negatives(INDEX, LABELS, True), "num_negatives must be an int, got bool"),
    "generator a seed": (
        lambda: ops.sample_negatives(INDEX, LABELS, 2, generator=7),
        "generator must be a torch.Generator or None, got int",
    ),
}

VALUE_ERRORS = {
    "index 0-dim": (lambda: ops.sample_negatives(INDEX[0], LABELS, 2), r"index must be \[B\], got \[\]"),
    "labels one-hot": (
        lambda: ops.sample_negatives(INDEX, LABELS.reshape(6, 10), 2),
        r"labels must be \[N\], got \[6, 10\]",
    ),
    "labels elsewhere": (
        lambda: ops.sample_negatives(INDEX, LABELS.to("meta"), 2),
        "labels must be on the device of index, cpu, got meta",
    ),
    "labels too many": (
        lambda: ops.sample_negatives(INDEX, LABELS[:1].expand(2**31), 2),
        "labels must hold at most 2147483647 samples, got 2147483648",
    ),
    "count huge": (
        lambda: ops.sample_negatives(INDEX, LABELS, 2**63),
        "num_negatives must be an int of 64 bits, got 9223372036854775808",
    ),
    "count negative": (lambda: ops.sample_negatives(INDEX, LABELS, -1), "num_negatives must be 0 or more, got -1"),
    "dtype": (
        lambda: ops.sample_negatives(INDEX, LABELS, 2, dtype=torch.int16),
        "dtype must be one of torch.int64, torch.int32, got torch.int16",
    ),
}


test_type_errors = refusals(TypeError, TYPE_ERRORS)
test_value_errors = refusals(ValueError, VALUE_ERRORS)


def test_generator_of_another_device():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    with pytest.raises(ValueError, match="generator must be on the device of the tensors, cpu, got cuda:0"):
        ops.sample_negatives(INDEX, LABELS, 2, generator=torch.Generator("cuda"))


@pytest.mark.parametrize("wrong", [60, -1, 2**62])
def test_index_out_of_range(backend, wrong):
    if backend.name == "cuda":
        pytest.skip("a device-side assertion, which ends the process's CUDA context")
    with pytest.raises(ValueError, match=f"index must hold positions in labels, of which there are 60, got {wrong}"):
        sample(backend, torch.tensor([3, wrong]))


def test_no_samples(backend):
    if backend.name == "cuda":
        pytest.skip("a device-side assertion, which ends the process's CUDA context")
    with pytest.raises(ValueError, match="index must hold positions in labels, of which there are 0, got 0"):
        sample(backend, INDEX[:1], LABELS[:0])


def test_one_class(backend):
    if backend.name == "cuda":
        pytest.skip("a device-side assertion, which ends the process's CUDA context")
    with pytest.raises(ValueError, match="labels must hold at least two classes, got 4 alone"):
        sample(backend, torch.tensor([1]), torch.full((9,), 4))
