"""From splits to batches: order, resuming, shares of ranks, workers."""

import io
import signal
import subprocess

import numpy as np
import pytest
import torch

from runner.augment.crop_flip import CropFlip
from runner.augment.cutout import Cutout
from runner.augment.mixup import Mixup
from runner.dataset import Dataset, Split
from runner.dataset.hub import Hub
from runner.dataset.loader import Loader

N, SHAPE = 53, (3, 6, 5)


class Noise(Dataset):
    """Random images with every field set."""

    classes, shape = 4, SHAPE

    def load(self):
        draw = np.random.default_rng(0)
        x = torch.from_numpy(draw.integers(0, 256, (N, *SHAPE), dtype=np.uint8))
        y = torch.from_numpy(draw.integers(0, 4, N))
        self.mean, self.std = torch.tensor([10.0, 100.0, 200.0]), torch.tensor([2.0, 50.0, 70.0])
        return Split(x, y, torch.arange(N) % 3), Split(x[:17], y[:17])


@pytest.fixture(scope="module")
def noise():
    dataset = Noise(val=0.0)
    dataset.prepare()
    return dataset


def loader(dataset, batch_size=8, seed=0, augments=(), **settings):
    return Loader(dataset, "cpu", batch_size, seed, list(augments), **settings)


def equal(a, b):
    """Two sequences of batches, bit for bit."""
    a, b = list(a), list(b)
    fields = ("x", "y", "index", "domain")
    return len(a) == len(b) and all(
        left.total == right.total
        and all(
            (getattr(left, f) is None and getattr(right, f) is None) or torch.equal(getattr(left, f), getattr(right, f))
            for f in fields
        )
        for left, right in zip(a, b, strict=True)
    )


def order(batches):
    return torch.cat([batch.index for batch in batches])


AUGMENTS = [CropFlip(2), Cutout(3), Mixup(classes=4)]


# ---- an epoch


def test_an_epoch_is_a_permutation_in_batches(noise):
    batches = list(loader(noise).epoch(0))
    assert [len(batch) for batch in batches] == [8] * 6 + [5]
    assert [batch.total for batch in batches] == [8] * 6 + [5]
    assert sorted(order(batches).tolist()) == list(range(N))
    assert order(batches).tolist() != list(range(N))


def test_batches_are_normalised_samples(noise):
    for batch in loader(noise).epoch(3):
        raw = noise.train.x[batch.index].double()
        expected = (raw - noise.mean.double().view(3, 1, 1)) / noise.std.double().view(3, 1, 1)
        assert batch.x.dtype == torch.float32
        torch.testing.assert_close(batch.x, expected.float(), rtol=1e-6, atol=1e-6)
        assert torch.equal(batch.y, noise.train.y[batch.index])
        assert torch.equal(batch.domain, batch.index % 3)


def test_order_depends_on_seed_and_epoch(noise):
    a = order(loader(noise, seed=1).epoch(2))
    assert torch.equal(a, order(loader(noise, seed=1, batch_size=5).epoch(2)))
    assert not torch.equal(a, order(loader(noise, seed=1).epoch(3)))
    assert not torch.equal(a, order(loader(noise, seed=2).epoch(2)))


def test_augmentations_are_applied_in_their_phases(noise):
    plain, cropped, cut = (list(loader(noise, augments=a).epoch(0)) for a in ([], [CropFlip(2)], [Cutout(3)]))
    for before, crop, square in zip(plain, cropped, cut, strict=True):
        border = (0 - noise.mean) / noise.std  # what a black pixel becomes
        is_border = (crop.x - border.view(3, 1, 1)).abs().amax(1) < 1e-6
        assert is_border.any()
        mask = (square.x == 0).all(1, keepdim=True)
        assert mask.any()
        assert torch.equal(square.x, before.x.masked_fill(mask, 0))


def test_resume_within_an_epoch(noise):
    whole = list(loader(noise, augments=AUGMENTS).epoch(4))
    for start in (0, 3, 6, 7):
        assert equal(whole[start:], loader(noise, augments=AUGMENTS).epoch(4, start))


def test_the_data_is_not_changed(noise):
    before = noise.train.x.clone()
    used = loader(noise, augments=AUGMENTS)
    for _ in used.epoch(0):
        pass
    assert torch.equal(noise.train.x, before)


def test_drop_last_and_steps(noise):
    for batch_size, drop, steps in [(8, False, 7), (8, True, 6), (53, True, 1), (54, True, 0), (54, False, 1)]:
        used = loader(noise, batch_size, drop_last=drop)
        assert used.steps_per_epoch == len(list(used.epoch(0))) == steps


def test_formats_and_dtypes(noise):
    last = next(loader(noise, channels_last=True, augments=AUGMENTS[:2]).epoch(0)).x
    plain = next(loader(noise, augments=AUGMENTS[:2]).epoch(0)).x
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()
    assert torch.equal(last, plain)
    double, half = (next(loader(noise, dtype=d).epoch(0)).x for d in (torch.float64, torch.bfloat16))
    single = next(loader(noise).epoch(0)).x
    torch.testing.assert_close(double.float(), single)
    assert torch.equal(half, single.bfloat16())


def test_vectors_are_normalised_by_column():
    class Table(Dataset):
        classes, shape = 2, (4,)

        def load(self):
            self.x = torch.randn(20, 4) * 3 + 1
            self.mean, self.std = self.x.mean(0), self.x.std(0)
            split = Split(self.x, torch.arange(20) % 2)
            return split, split

    dataset = Table(val=0.0)
    dataset.prepare()
    kept = dataset.x.clone()
    expected = (kept - kept.mean(0)) / kept.std(0)
    for batch in loader(dataset).epoch(0):
        torch.testing.assert_close(batch.x, expected[batch.index])
    assert torch.equal(
        torch.cat([b.x for b in loader(dataset).evaluate(dataset.test, 20)]),
        torch.cat([b.x for b in loader(dataset).evaluate(dataset.test, 3)]),
    )
    assert torch.equal(dataset.x, kept)


# ---- ranks


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_every_batch(noise, world, drop_last):
    alone = list(loader(noise, augments=AUGMENTS[:2], drop_last=drop_last).epoch(1))
    ranks = [loader(noise, augments=AUGMENTS[:2], drop_last=drop_last, rank=r, world=world) for r in range(world)]
    parts = [list(rank.epoch(1)) for rank in ranks]
    for step, batch in enumerate(alone):
        shares = [part[step] for part in parts]
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1
        assert {share.total for share in shares} == {len(batch)}
        for field in ("x", "y", "index", "domain"):
            assert torch.equal(torch.cat([getattr(share, field) for share in shares]), getattr(batch, field))


def test_a_last_batch_too_small_for_the_ranks_is_left_out(noise):
    # 53 = 6 * 8 + 5: five samples cannot be shared by six
    for rank in range(6):
        used = loader(noise, rank=rank, world=6)
        assert used.steps_per_epoch == len(list(used.epoch(0))) == 6
    assert loader(noise, batch_size=2, world=3).steps_per_epoch == 0


def test_mixup_shares_one_number_over_ranks(noise):
    shares = []
    for rank in range(2):
        batch = next(loader(noise, augments=[Mixup(classes=4)], rank=rank, world=2).epoch(0))
        values = batch.y[(batch.y > 0) & (batch.y < 1)]
        shares.append({round(max(float(v), 1 - float(v)), 5) for v in values})
    assert shares[0] == shares[1]
    assert len(shares[0]) == 1


# ---- evaluation


def test_evaluation_is_in_order_and_plain(noise):
    batches = list(loader(noise, augments=AUGMENTS).evaluate(noise.test, 5))
    assert [len(batch) for batch in batches] == [5, 5, 5, 2]
    assert order(batches).tolist() == list(range(17))
    x = torch.cat([batch.x for batch in batches]).double()
    torch.testing.assert_close(
        x * noise.std.view(3, 1, 1) + noise.mean.view(3, 1, 1), noise.test.x.double(), atol=1e-4, rtol=0
    )
    assert torch.equal(torch.cat([batch.y for batch in batches]), noise.test.y)


def test_evaluation_is_shared_without_padding(noise):
    parts = [list(loader(noise, rank=r, world=4).evaluate(noise.test, 3)) for r in range(4)]
    assert sum((order(part).tolist() for part in parts), []) == list(range(17))
    few = noise.test.select(torch.arange(2))
    assert sum(len(list(loader(noise, rank=r, world=4).evaluate(few, 3))) for r in range(4)) == 2


def test_only_the_own_splits_are_kept(noise):
    used = loader(noise)
    for _ in range(3):
        list(used.evaluate(noise.test.select(torch.arange(4)), 4))
    assert len(used._resident) == 3


# ---- streamed


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """Twenty-one coloured images that stay encoded, trained on random crops."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    folder = tmp_path_factory.mktemp("streamed")
    (folder / "data" / "tiny").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for split, n in (("train", 21), ("test", 7)):
        cells = []
        for pixels in draw.integers(0, 256, (n, 12, 10, 3), dtype=np.uint8):
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "png")
            cells.append({"bytes": out.getvalue(), "path": None})
        table = pa.table({"image": cells, "label": np.arange(n) % 3})
        pq.write_table(table, folder / "data" / "tiny" / f"{split}-0.parquet")
    paths = {"data_dir": str(folder / "data"), "cache_dir": str(folder / "cache")}
    dataset = Hub(id="a/tiny", stream=True, random_crop=True, size=8, mean=[0.5], std=[0.25], val=0.0, **paths)
    dataset.prepare()
    return dataset


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(streamed, workers):
    here, there = (loader(streamed, 4, augments=[CropFlip(1)], workers=w) for w in (0, workers))
    for epoch in (0, 1):  # the same workers twice
        assert equal(here.epoch(epoch), there.epoch(epoch))
    assert equal(here.evaluate(streamed.test, 2), there.evaluate(streamed.test, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_resume_and_leave_global_randomness_alone(streamed, workers):
    used = loader(streamed, 4, workers=workers)
    before = torch.get_rng_state()
    whole = list(used.epoch(2))
    broken_off = used.epoch(1)
    next(broken_off)
    broken_off.close()
    assert equal(whole[3:], used.epoch(2, 3))
    assert equal(whole[3:], loader(streamed, 4, workers=workers).epoch(2, 3))
    assert torch.equal(before, torch.get_rng_state())
    assert sorted(order(whole).tolist()) == list(range(21))


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no sigwaitinfo on this system")
def test_workers_outlive_signals_to_the_whole_job(streamed):
    used = loader(streamed, 2, workers=2)
    batches = used.epoch(0)
    got = [next(batches), next(batches)]  # one from each: both are past their start
    workers = used._workers._iterator._workers
    for name in ("INT", "TERM"):  # from another process, as a terminal or a cluster sends them
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    assert equal([*got, *batches], loader(streamed, 2).epoch(0))
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()  # from this one, as multiprocessing does at the end
    workers[0].join(20)
    assert workers[0].exitcode == 0


def test_random_crops_are_keyed_by_sample_and_epoch(streamed):
    def images(epoch, batch_size):
        found = torch.empty(21, 3, 8, 8)
        for batch in loader(streamed, batch_size).epoch(epoch):
            found[batch.index] = batch.x
        return found

    assert torch.equal(images(0, 4), images(0, 7))
    assert not torch.equal(images(0, 4), images(1, 4))


def test_streams_are_shared_by_ranks(streamed):
    alone = list(loader(streamed, 6).epoch(0))
    parts = [list(loader(streamed, 6, rank=r, world=2).epoch(0)) for r in range(2)]
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([part[step].x for part in parts]), batch.x)
    evaluated = [b.x for r in range(2) for b in loader(streamed, 6, rank=r, world=2).evaluate(streamed.test, 2)]
    assert torch.equal(torch.cat(evaluated), torch.cat([b.x for b in loader(streamed, 6).evaluate(streamed.test, 7)]))
