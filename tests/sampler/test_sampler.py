"""Which samples an epoch visits: counts against their definitions, resuming, shares, packs, refusals."""

import sys

import pytest
import torch
import yaml

from runner.augment.crop_flip import CropFlip
from runner.command.build import build
from runner.command.listing import conf_dir, options
from runner.core import keyed
from runner.core.mistake import ConfigError
from runner.dataset import Dataset, Split
from runner.dataset.loader import Loader
from runner.hook import Hook
from runner.loss import remember
from runner.sampler import Sampler, groups, turns
from tests.conftest import ROOT
from tests.engine.test_replicas import assert_pack_equals_alone, doubled
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import trainer

SIZES = [29, 3, 17, 6]  # of four classes; every third sample is of domain 0, the others of domain 1
Y = torch.arange(4).repeat_interleave(torch.tensor(SIZES))[
    torch.randperm(55, generator=torch.Generator().manual_seed(0))
]
DOMAIN = (torch.arange(55) % 3).clamp(max=1)
EPOCHS = 7


def a_split(**changed) -> Split:
    return Split(**{"base": torch.arange(55.0).unsqueeze(1), "y": Y, "domain": DOMAIN, **changed})


def made(
    option: str, batch_size: int = 8, seed: int = 3, split: Split | None = None, bag: int = 1, **settings
) -> Sampler:
    node = yaml.safe_load((conf_dir() / "sampler" / f"{option}.yaml").read_text())
    sampler = build({**node, **settings}, "sampler")
    sampler.prepare(split or a_split(), batch_size, seed, bag)
    return sampler


def batches(sampler: Sampler, epochs: int = EPOCHS) -> list[torch.Tensor]:
    return [part for epoch in range(epochs) for part in sampler.order(epoch).split(sampler.batch_size)]


OPTIONS = sorted(options("sampler", [conf_dir()]))
SMALL = {"classes": {"classes": 2, "per_class": 4}}


@pytest.mark.parametrize("option", OPTIONS)
def test_what_every_sampler_keeps(option):
    """An epoch is a function of seed and epoch: asked again, in another order, of a new object. Its length is one."""
    sampler, again = (made(option, **SMALL.get(option, {})) for _ in range(2))
    orders = [sampler.order(epoch) for epoch in range(4)]
    for epoch in (3, 0, 2, 1):
        order = again.order(epoch)
        assert torch.equal(order, orders[epoch]) and order.dtype == torch.int64 and len(order) == sampler.length
        assert (order >= 0).all() and (order < 55).all()
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert not torch.equal(made(option, seed=4, **SMALL.get(option, {})).order(0), orders[0])
    if sampler.whole:
        assert all(torch.equal(order.sort().values, torch.arange(55)) for order in orders)
    assert sampler.block == 1 or sampler.batch_size % sampler.block == 0
    assert sampler.notices() == [] or option in ("classes",)


@pytest.mark.parametrize("by, count", [("class", 4), ("domain", 2), ("group", 7)])
def test_groups_are_the_pairs_that_occur(by, count):
    found = groups(a_split(), by)
    pairs = {"class": Y, "domain": DOMAIN, "group": 2 * Y + DOMAIN}[by]
    assert len(found.unique()) == count == found.max() + 1
    assert torch.equal(found.unsqueeze(0) == found.unsqueeze(1), pairs.unsqueeze(0) == pairs.unsqueeze(1))


def permutations_end_to_end(samples: torch.Tensor, members: torch.Tensor) -> bool:
    whole = samples[: len(samples) // len(members) * len(members)].view(-1, len(members))
    return len(samples) >= len(members) and all(torch.equal(turn.sort().values, members) for turn in whole)


@pytest.mark.parametrize("by", ["class", "domain", "group"])
@pytest.mark.parametrize("batch_size", [8, 5])
def test_balanced_has_as_many_of_every_group(by, batch_size):
    sampler, of = made("balanced", batch_size, by=by), groups(a_split(), by)
    count = int(of.max()) + 1
    for batch in batches(sampler):
        counts = torch.bincount(of[batch], minlength=count)
        assert counts.max() - counts.min() <= 1 and (len(batch) % count or counts.max() == counts.min())
    visited = torch.cat([sampler.order(epoch) for epoch in range(60)])
    for group in range(count):  # over the ends of epochs too
        assert permutations_end_to_end(visited[of[visited] == group], (of == group).nonzero().flatten())


def test_single_has_one_group_a_batch_and_every_group_once_a_round():
    sampler = made("single", 4)
    found = batches(sampler, 12)
    assert all(len(batch) == 4 and len(Y[batch].unique()) == 1 for batch in found) and len(found) == 12 * 13
    labels = torch.stack([Y[batch][0] for batch in found])
    rounds = labels[: len(labels) // 4 * 4].view(-1, 4)
    assert all(torch.equal(one.sort().values, torch.arange(4)) for one in rounds) and len(rounds.unique(dim=0)) > 5
    visited = torch.cat(found)
    for label in range(4):
        assert permutations_end_to_end(visited[Y[visited] == label], (label == Y).nonzero().flatten())


@pytest.mark.parametrize("classes, per_class", [(2, 4), (3, 2), (4, 3)])
def test_classes_are_p_of_k_samples_in_blocks(classes, per_class):
    sampler = made("classes", classes * per_class, classes=classes, per_class=per_class)
    for epoch in range(5):
        order, seen = sampler.order(epoch), []
        for batch in order.split(classes * per_class):
            table = Y[batch].view(per_class, classes)
            assert (table == table[0]).all() and len(table[0].unique()) == classes
            seen += table[0].tolist()
            for block in batch.split(sampler.block):
                counts = torch.bincount(Y[block], minlength=4)
                assert len(block) < sampler.block or sorted(counts.tolist())[-classes:] == [2] * classes
        turn = 4 // classes * classes
        assert all(len(set(seen[i : i + turn])) == turn for i in range(0, len(seen) - turn + 1, turn))
        for label in range(4):
            own, members = order[Y[order] == label], (label == Y).nonzero().flatten()
            assert len(own) < len(members) or permutations_end_to_end(own, members)
    assert made("classes", 8, classes=2).notices() == [
        "sampler=classes: 1 class(es) have fewer than 4 samples, which repeat in a batch"
    ]


def test_weights_give_every_group_the_same_part():
    sampler = made("weighted", by="group")
    weight = sampler.about(0, 0, torch.arange(55))["weight"]
    of = groups(a_split(), "group")
    assert weight.mean() == pytest.approx(1)
    for group in range(7):
        assert weight[of == group].sum() == pytest.approx(55 / 7)
    assert weight[0] == pytest.approx(55 / (7 * int((of == of[0]).sum())))
    assert torch.equal(sampler.order(2), made("shuffle").order(2))
    even = a_split(y=torch.arange(55) % 5)
    assert "all weigh 1" in made("weighted", split=even).notices()[0]


def test_turns_count_what_came_before():
    assert turns(torch.tensor([4, 2, 4, 4, 0, 2])).tolist() == [0, 0, 1, 2, 0, 1]


# ---- in batches


class Pictures(Dataset):
    classes, shape = 4, (1, 9, 9)

    def load(self):
        x = torch.randint(0, 256, (55, *self.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        self.mean, self.std = torch.zeros(1), torch.ones(1)
        return Split(x, Y, DOMAIN), Split(x[:5], Y[:5], DOMAIN[:5])


@pytest.fixture(scope="module")
def pictures():
    dataset = Pictures(val=0.0)
    dataset.prepare()
    return dataset


def test_a_sample_that_comes_again_is_augmented_anew(pictures):
    """In its first turn of an epoch as without a sampler; later in the epoch otherwise; from any step on the same."""
    loader = Loader(pictures, "cpu", 8, 0, [CropFlip(4)], made("balanced"))
    plain = {
        int(i): x
        for batch in Loader(pictures, "cpu", 8, 0, [CropFlip(4)]).epoch(2)
        for i, x in zip(batch.index, batch.x)
    }
    first, seen = {}, 0
    for batch in loader.epoch(2):
        for index, x in zip(batch.index.tolist(), batch.x, strict=True):
            if index not in first:
                first[index] = x
                assert torch.equal(x, plain[index])
            else:
                seen += not torch.equal(x, first[index])
    assert seen > 15
    rest = list(loader.epoch(2, 3))
    for one, other in zip(list(loader.epoch(2))[3:], rest, strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.index, other.index)


@pytest.mark.parametrize("option", OPTIONS)
def test_shares_of_processes_are_the_whole(pictures, option):
    def loader(**settings):
        return Loader(pictures, "cpu", 8, 0, [CropFlip(2)], made(option, **SMALL.get(option, {})), **settings)

    shares = [list(loader(rank=rank, world=3).epoch(1)) for rank in range(3)]
    for whole, *parts in zip(loader().epoch(1), *shares, strict=True):
        for name in ("x", "y", "index", "domain", *["weight"] * (option == "weighted")):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        assert {part.total for part in parts} == {whole.total}
        assert (whole.weight is None) == (option != "weighted")


class Tells(Sampler):
    def about(self, epoch, step, rows):
        return {"y": (rows + epoch) % 4, "domain": rows % 2, "part": rows * 10 + step}


def test_what_a_sampler_tells_is_in_the_batch(pictures):
    sampler = Tells()
    sampler.prepare(pictures.train, 8, 0)
    for step, batch in enumerate(Loader(pictures, "cpu", 8, 0, [], sampler).epoch(1)):
        assert torch.equal(batch.y, (batch.index + 1) % 4) and torch.equal(batch.domain, batch.index % 2)
        assert torch.equal(batch.more["part"], batch.index * 10 + step)


# ---- runs


LONG_TAIL = ["dataset.imbalance=10", "dataset.subset=300", "dataset.val=0", "train.batch_size=16", "train.epochs=3"]


@pytest.mark.parametrize("option", ["balanced", "weighted"])
@pytest.mark.parametrize("more", [["optim=sam", "augment=crop_flip"], ["train.accumulate=2", "train.precision=fp16"]])
def test_stopped_within_an_epoch_and_gone_on(option, more, tmp_path):
    assert_resumed_equals_whole([f"sampler={option}", "dataset.imbalance=10", "dataset.subset=32", *more], 6, tmp_path)


def test_parts_of_a_step_are_one_step():
    """Micro-batches, and m-sharpness without a radius, are the whole batch's gradient."""
    found = []
    for more in ([], ["train.accumulate=3"], ["sharpness=sam", "sharpness.rho=0", "sharpness.m=8"]):
        run = trainer(*LONG_TAIL, "sampler=weighted", *more, double=True)
        run.step(next(run.loader.epoch(1)))
        found.append(run.weights.clone())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-12)
    assert (found[0] - trainer(*LONG_TAIL, double=True).weights.data).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampler=balanced", "federated=fedavg"], "clients visit their own samples, each once an epoch"),
        (["sampler=balanced", "dataset.bag_size=2", "loss=easyllp"], "sampler=balanced: it takes bags apart"),
        (["sampler=balanced", "sampler.by=domain"], "sampler=balanced: by=domain goes by domains, and this data set"),
        (["sampler=weighted", "dataset=diabetes", "loss=squared"], "by=class goes by one class id a sample"),
        (["sampler=classes"], "train.batch_size=64 is not classes x per_class = 8 x 4 = 32"),
        (["sampler=classes", "sampler.classes=11"], "classes=11, and the training set has samples of 10"),
        (["sampler=classes", "sampler.per_class=1"], "pairs need two of each at least"),
        (
            ["sampler=classes", "train.batch_size=32", "train.accumulate=4"],
            "a part of a batch of 32, cut by train.accumulate=4 has 8 samples, and the sampler puts 16 together",
        ),
        (["sampler=classes", "train.batch_size=32", "sharpness=sam", "sharpness.m=24"], "the sampler puts 16 together"),
        (["sampler._target_=tests.sampler.test_sampler.Beyond"], r"must return samples of 0 to \d+ as a tensor"),
        (["sampler._target_=tests.sampler.test_sampler.Twice"], "visits a sample twice in an epoch: set whole = False"),
    ],
    ids=lambda of: of if isinstance(of, str) else None,
)
def test_refused_in_a_line(words, message):
    with pytest.raises(ConfigError, match=message) as refused:
        trainer(*words)
    assert "\n" not in str(refused.value)


class Beyond(Sampler):
    def order(self, epoch):
        return super().order(epoch) + 1


class Twice(Sampler):
    def order(self, epoch):
        return super().order(epoch) // 2


# ---- one that goes by how training goes


class Easy(Sampler, Hook):
    """Every epoch the half of the samples whose losses were smallest when they last came; unseen ones have loss 0."""

    whole = False

    def prepare(self, split, batch_size, seed, bag=1):
        super().prepare(split, batch_size, seed, bag)
        self.length = len(split) // 2
        self.losses, self.now = torch.zeros(2, len(split)).unbind()

    def order(self, epoch):
        every = torch.from_numpy(keyed.generator(self.seed, "easy", epoch).permutation(len(self.now)))
        return every[self.now[every].argsort(stable=True)[: self.length]]

    def observe(self, run, out, batch):
        remember(self.losses, batch.index, run.loss(out, batch).detach())

    def step(self, run):
        if (run.count + 1) % run.steps_per_epoch == 0:
            self.now.copy_(self.losses)

    def state_dict(self):
        return {"losses": self.losses, "now": self.now}

    def load_state_dict(self, state):
        self.losses.copy_(state["losses"]), self.now.copy_(state["now"])


EASY = ["sampler._target_=tests.sampler.test_sampler.Easy", "dataset.subset=60", "train.batch_size=8", "dataset.val=0"]


def test_one_that_learns_chooses_and_goes_on(tmp_path):
    run = trainer(*EASY, "train.epochs=6")
    for epoch in range(3):
        order = run.loader.order(epoch)
        unseen = (run.loader.sampler.losses == 0).sum()
        assert len(order) == 30 and (epoch > 1 or unseen == 60 - 30 * epoch)
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    kept = run.loader.sampler.losses
    assert torch.equal(run.loader.order(3).sort().values, kept.argsort(stable=True)[:30].sort().values)
    assert_resumed_equals_whole([EASY[0], "dataset.subset=64"], 6, tmp_path)


def test_one_that_learns_is_packed():
    words = [
        "sampler._target_=tests.sampler.test_sampler.Easy",
        "train.batch_size=8",
        "train.epochs=8",
        "model.hidden=[12]",
    ]
    assert_pack_equals_alone(doubled, [[*words, "seed=0"], [*words, "seed=1"], [*words, "seed=2", "optim.lr=0.03"]])


# ---- the sampler that DESIGN.md shows


def test_the_sampler_shown_does_what_it_says(tmp_path, monkeypatch):
    text = (
        (ROOT / "DESIGN.md")
        .read_text()
        .partition("from runner.sampler import Sampler  # once.py")[2]
        .partition("```")[0]
    )
    (tmp_path / "once.py").write_text(f"from runner.sampler import Sampler\n{text}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "once", raising=False)
    run, plain = trainer("sampler._target_=once.Once"), trainer()
    assert torch.equal(run.loader.order(5), plain.loader.order(0)) and torch.equal(
        run.loader.order(0), plain.loader.order(0)
    )
