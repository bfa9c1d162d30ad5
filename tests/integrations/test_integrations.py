"""Real trainings by Lightning, transformers, Fabric and Accelerate."""

import contextlib
import csv
import functools
import gc
import os
import shutil
import subprocess
import sys

import accelerate
import lightning
import lightning.pytorch as pl
import pytest
import torch
import transformers
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

import torchlimits as tl

BATCHES = 10
NAMES = [f"w[{i},{j}]" for i in range(2) for j in range(6)] + ["norm"]


def statistics(name="layer.weight"):
    return {"w": lambda p: p[name], "norm": lambda p: p[name].norm()}


def shown(folder):
    """{tag: [(step, value)]} as TensorBoard reads it, without what charts repeat by folder."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in accumulator.Tags()["scalars"] if not tag.startswith("· ")]
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags}


def same(first, second):
    return (
        torch.equal(first.steps, second.steps)
        and torch.equal(first.times, second.times)
        and torch.equal(first.values, second.values)
        and list(first.names) == list(second.names)
    )


def weights_of(path):
    """The recorded weights, (T, 2, 6)."""
    return path.values[:, :12].reshape(-1, 2, 6).float()


def initialised(layer):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
    return layer


def inputs():
    return torch.randn(4 * BATCHES, 6, generator=torch.Generator().manual_seed(2))


def batches():
    return DataLoader(TensorDataset(inputs()), batch_size=4)


class Stop(Exception):
    pass


# --- Lightning -----------------------------------------------------------------------------------


class Module(pl.LightningModule):
    """One layer, momentum, a learning rate that is warmed up from 0 if asked for."""

    def __init__(self, warm_up=False, stop_at=None):
        super().__init__()
        self.layer = initialised(torch.nn.Linear(6, 2, bias=False))
        self.warm_up, self.stop_at, self.seen = warm_up, stop_at, []

    def training_step(self, batch, index):
        self.seen.append(self.layer.weight.detach().clone())
        if len(self.seen) == self.stop_at:
            raise Stop
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)
        if not self.warm_up:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 4, 1.0))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Resumable(Module):
    """Takes the batch of its step: Lightning's own order begins anew in the midst of an epoch."""

    def training_step(self, batch, index):
        begin = 4 * (self.global_step % BATCHES)
        return super().training_step([inputs()[begin : begin + 4]], index)


class Adversaries(pl.LightningModule):
    """Two optimizers, the second of which steps every other batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.layer = initialised(torch.nn.Linear(6, 2, bias=False))
        self.other = torch.nn.Linear(6, 2, bias=False)

    def training_step(self, batch, index):
        for optimizer, layer in zip(self.optimizers(), (self.layer, self.other), strict=True):
            if layer is self.layer or index % 2:
                optimizer.zero_grad()
                self.manual_backward(layer(batch[0]).square().mean())
                optimizer.step()

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.layer.parameters(), lr=0.05),
            torch.optim.SGD(self.other.parameters(), lr=0.01),
        ]


def trainer_of(folder, *callbacks, package=pl, epochs=2, steps=-1, logger=False, **options):
    return package.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs if steps < 0 else -1,
        max_steps=steps,
        callbacks=list(callbacks),
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=any("Checkpoint" in type(one).__name__ for one in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def lightning_callback(**options):
    return tl.integrations.lightning.TrackerCallback(statistics(), **options)


def test_lightning_trains_and_records_what_it_trains(tmp_path):
    alone, module, callback = Module(), Module(), lightning_callback(path=tmp_path / "u.npz")
    trainer_of(tmp_path).fit(alone, batches())
    trainer_of(tmp_path, callback).fit(module, batches())
    assert torch.equal(alone.layer.weight, module.layer.weight)
    path = callback.tracker.trajectory()
    assert path.names == NAMES
    assert path.steps.tolist() == list(range(2 * BATCHES + 1))
    # what the training itself sees before each step, and after the last
    weights = torch.stack([*module.seen, module.layer.weight.detach()])
    assert torch.equal(weights_of(path), weights)
    assert path.metadata["parameters"]["optimizer"] == "SGD"
    assert same(tl.Trajectory.load(tmp_path / "u.npz"), path)


def test_pytorch_lightning_by_its_older_name(tmp_path):
    import pytorch_lightning

    class Older(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = initialised(torch.nn.Linear(6, 2, bias=False))

        def training_step(self, batch, index):
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    callback, logger = lightning_callback(), pytorch_lightning.loggers.TensorBoardLogger(tmp_path)
    trainer = trainer_of(tmp_path, callback, package=pytorch_lightning, logger=logger)
    trainer.fit(Older(), batches())
    assert len(callback.tracker.trajectory()) == 2 * BATCHES + 1
    assert len(shown(f"{logger.log_dir}/measured")["norm"]) == 2 * BATCHES + 1


def test_statistics_are_a_run_beside_lightnings_scalars(tmp_path):
    logger, callback = TensorBoardLogger(tmp_path, "log", version=0), lightning_callback()
    trainer_of(tmp_path, callback, logger=logger).fit(Module(), batches())
    folder = tmp_path / "log" / "version_0"
    assert [step for step, _ in shown(folder)["loss"]] == list(range(2 * BATCHES))
    events, path = shown(folder / "measured"), callback.tracker.trajectory()
    assert [step for step, _ in events["w/1/2"]] == list(range(2 * BATCHES + 1))
    assert [value for _, value in events["w/1/2"]] == path["w[1,2]"].float().tolist()
    assert same(tl.Trajectory.load(folder / "measured" / "recorded.rows"), path)
    # a prediction comes beside it by the package's own layout
    tl.tensorboard.write(folder, measured=path, predicted=path)
    assert set(shown(folder / "predicted")) == set(events)


def test_other_loggers_get_the_statistics_by_log_metrics(tmp_path):
    loggers = [CSVLogger(tmp_path / name, "log", version=0) for name in ("a", "b")]
    callback = lightning_callback()
    trainer_of(tmp_path, callback, logger=loggers).fit(Module(), batches())
    path = callback.tracker.trajectory()
    for name in ("a", "b"):
        with (tmp_path / name / "log" / "version_0" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [float(r["loss"]) for r in rows if r["loss"]]
        recorded = {int(r["step"]): float(r["norm"]) for r in rows if r["norm"]}
        assert recorded == dict(zip(path.steps.tolist(), path["norm"].tolist(), strict=True))


def test_all_loggers_get_the_statistics(tmp_path):
    """Those of TensorBoard in a folder of each, others by log_metrics."""
    loggers = [
        CSVLogger(tmp_path, "table", version=0),
        *(TensorBoardLogger(tmp_path, name, version=0) for name in ("a", "b")),
    ]
    callback = lightning_callback()
    trainer_of(tmp_path, callback, checkpoints(tmp_path), logger=loggers, steps=10).fit(
        Module(), batches()
    )
    path = callback.tracker.trajectory()
    with (tmp_path / "table" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["norm"]]
    assert [float(row["norm"]) for row in rows] == path["norm"].tolist()
    for name in ("a", "b"):
        found = shown(tmp_path / name / "version_0" / "measured")["norm"]
        assert found == list(zip(path.steps.tolist(), path["norm"].float().tolist(), strict=True))
    # and they go on together
    (checkpoint,) = (tmp_path / "checkpoints").glob("*step=7.ckpt")
    trainer = trainer_of(tmp_path, lightning_callback(), logger=loggers[1:], steps=12)
    with pytest.raises(ValueError, match="of 2 sinks, got one of 3"):
        trainer.fit(Module(), batches(), ckpt_path=checkpoint)
    loggers[0] = CSVLogger(tmp_path, "table", version=1)
    trainer = trainer_of(tmp_path, callback, logger=loggers, steps=12)
    trainer.fit(Module(), batches(), ckpt_path=checkpoint)
    for name in ("a", "b"):
        found = shown(tmp_path / name / "version_0" / "measured")["norm"]
        assert [step for step, _ in found] == list(range(13))


def test_a_writer_of_ones_own_or_none(tmp_path):
    table = tl.CSV(tmp_path / "u.csv")
    for writer in (table, False):
        logger = TensorBoardLogger(tmp_path, "log", version=0)
        callback = lightning_callback(writer=writer)
        trainer_of(tmp_path, callback, logger=logger).fit(Module(), batches())
        assert not (tmp_path / "log" / "version_0" / "measured").exists()
    assert len(table.path.read_text().splitlines()) == 2 * BATCHES + 2


def checkpoints(folder):
    return ModelCheckpoint(folder / "checkpoints", every_n_train_steps=7, save_top_k=-1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A Lightning run that nothing interrupts: weights, trajectory, events."""
    folder = tmp_path_factory.mktemp("whole")
    logger, callback = TensorBoardLogger(folder, "log"), lightning_callback()
    module = Resumable(warm_up=True)
    trainer_of(folder, callback, logger=logger, steps=30).fit(module, batches())
    path = callback.tracker.trajectory()
    assert path.steps.tolist() == list(range(31))
    assert path.times[:2].tolist() == [0.0, 0.0]  # the warm-up's first step
    return module.layer.weight.detach(), path, shown(f"{logger.log_dir}/measured")


@pytest.mark.parametrize("version", [0, 1])
def test_lightning_resumes_without_a_gap_or_a_double(whole, tmp_path, version):
    """In the logger's old folder, or a new one."""
    callback, logger = lightning_callback(), TensorBoardLogger(tmp_path, "log", version=0)
    trainer = trainer_of(tmp_path, callback, checkpoints(tmp_path), logger=logger, steps=30)
    with pytest.raises(Stop):
        trainer.fit(Resumable(True, stop_at=19), batches())
    assert callback.tracker.step == 18
    (checkpoint,) = (tmp_path / "checkpoints").glob("*step=14.ckpt")
    module, callback = Resumable(True), lightning_callback(path=tmp_path / "u.npz")
    logger = TensorBoardLogger(tmp_path, "log", version=version)
    trainer = trainer_of(tmp_path, callback, checkpoints(tmp_path), logger=logger, steps=30)
    trainer.fit(module, batches(), ckpt_path=checkpoint)
    weights, path, events = whole
    assert torch.equal(module.layer.weight, weights)
    assert same(callback.tracker.trajectory(), path)
    assert same(tl.Trajectory.load(tmp_path / "u.npz"), path)
    assert shown(f"{logger.log_dir}/measured") == events


def test_a_checkpoint_made_after_the_training(whole, tmp_path):
    trainer = trainer_of(tmp_path, lightning_callback(), steps=17)
    trainer.fit(Resumable(True), batches())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    module, callback = Resumable(True), lightning_callback()
    trainer_of(tmp_path, callback, steps=30).fit(module, batches(), ckpt_path=tmp_path / "end.ckpt")
    assert torch.equal(module.layer.weight, whole[0])
    assert same(callback.tracker.trajectory(), whole[1])


def test_a_second_fit_goes_on_with_the_first(tmp_path):
    callback, module = lightning_callback(path=tmp_path / "u.npz"), Module()
    trainer = trainer_of(tmp_path, callback, epochs=1)
    trainer.fit(module, batches())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, batches())
    path = tl.Trajectory.load(tmp_path / "u.npz")
    assert path.steps.tolist() == list(range(3 * BATCHES + 1))
    weights = torch.stack([*module.seen, module.layer.weight.detach()])
    assert torch.equal(weights_of(path), weights)
    # another Trainer begins at step 0
    trainer_of(tmp_path, callback, epochs=1).fit(module, batches())
    assert len(callback.tracker.trajectory()) == BATCHES + 1


def test_a_checkpoint_without_recorded_steps(tmp_path):
    trainer_of(tmp_path, checkpoints(tmp_path), epochs=1).fit(Module(), batches())
    (checkpoint,) = (tmp_path / "checkpoints").glob("*step=7.ckpt")
    callback = lightning_callback()
    with pytest.warns(RuntimeWarning, match="its step 0 is the trainer's step 7"):
        trainer_of(tmp_path, callback, epochs=1).fit(Module(), batches(), ckpt_path=checkpoint)
    assert callback.tracker.trajectory().steps.tolist() == [0, 1, 2, 3]


def test_a_checkpoint_of_other_statistics(tmp_path):
    trainer_of(tmp_path, lightning_callback(), checkpoints(tmp_path)).fit(Module(), batches())
    (checkpoint,) = (tmp_path / "checkpoints").glob("*step=7.ckpt")
    other = tl.integrations.lightning.TrackerCallback({"mean": lambda p: p["layer.weight"].mean()})
    trainer, module = trainer_of(tmp_path, other), Module()
    with pytest.raises(ValueError, match="expected a state of the statistics"):
        trainer.fit(module, batches(), ckpt_path=checkpoint)
    assert not module.seen


def test_an_exception_ends_the_recording_of_lightning(tmp_path):
    callback = lightning_callback(path=tmp_path / "u.npz")
    with pytest.raises(Stop):
        trainer_of(tmp_path, callback).fit(Module(stop_at=6), batches())
    assert tl.Trajectory.load(tmp_path / "u.npz").steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert not list(tmp_path.glob("*.unfinished"))


def test_an_early_stop_ends_the_recording_of_lightning(tmp_path):
    class Never(Module):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            self.log("constant", 1.0)
            return loss

    callback = lightning_callback(path=tmp_path / "u.npz")
    stop = EarlyStopping("constant", patience=2, check_on_train_epoch_end=True, verbose=False)
    trainer_of(tmp_path, callback, stop, epochs=20).fit(Never(), batches())
    assert len(tl.Trajectory.load(tmp_path / "u.npz")) == 3 * BATCHES + 1


def test_divergence_ends_the_training_of_lightning(tmp_path):
    class Diverging(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e8)

    callback = lightning_callback(path=tmp_path / "u.npz")
    with pytest.raises(tl.NonFiniteStatistic, match="diverged"):
        trainer_of(tmp_path, callback).fit(Diverging(), batches())
    assert 1 < len(tl.Trajectory.load(tmp_path / "u.npz")) < 10


def test_lightning_accumulates_gradients(tmp_path):
    callback = lightning_callback()
    trainer = trainer_of(tmp_path, callback, accumulate_grad_batches=4)
    trainer.fit(module := Module(), batches())
    path = callback.tracker.trajectory()
    assert path.steps.tolist() == list(range(7))  # 4 + 4 + 2 batches an epoch
    seen = [*module.seen[::4][:3], *module.seen[10::4], module.layer.weight.detach()]
    assert torch.equal(weights_of(path), torch.stack(seen))


def test_several_optimizers_of_lightning(tmp_path):
    with pytest.raises(ValueError, match=r"got 2 \(SGD, SGD\): choose one"):
        trainer_of(tmp_path, lightning_callback()).fit(Adversaries(), batches())
    with pytest.raises(ValueError, match="expected optimizer=2 among the 2"):
        trainer_of(tmp_path, lightning_callback(optimizer=2)).fit(Adversaries(), batches())
    callbacks = [
        tl.integrations.lightning.TrackerCallback(
            statistics(f"{name}.weight"), optimizer=number, path=tmp_path / f"{name}.npz"
        )
        for number, name in enumerate(("layer", "other"))
    ]
    trainer_of(tmp_path, *callbacks, epochs=1).fit(module := Adversaries(), batches())
    for name, steps, lr in (("layer", BATCHES, 0.05), ("other", BATCHES // 2, 0.01)):
        path = tl.Trajectory.load(tmp_path / f"{name}.npz")
        assert path.steps.tolist() == list(range(steps + 1))
        assert float(path.times[-1]) == pytest.approx(steps * lr)
        last = module.get_parameter(f"{name}.weight").detach()
        assert torch.equal(weights_of(path)[-1], last)


# --- transformers --------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """What the Trainer of transformers asks of a model: a dict with a loss."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.layer = initialised(torch.nn.Linear(6, 2, bias=False))
        self.stop_at, self.seen = stop_at, []

    def forward(self, x):
        if not self.training:
            return {"loss": torch.ones(())}
        self.seen.append(self.layer.weight.detach().clone())
        if len(self.seen) == self.stop_at:
            raise Stop
        return {"loss": self.layer(x).square().mean()}


def data():
    return [{"x": row} for row in inputs()]


def hugging_trainer(folder, model, *callbacks, **options):
    settings = {
        "output_dir": str(folder),
        "max_steps": 3 * BATCHES,
        "optim": "sgd",
        "learning_rate": 0.05,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    arguments = transformers.TrainingArguments(**settings)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data(), eval_dataset=data()[:4], callbacks=list(callbacks)
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def hugging_callback(**options):
    return tl.integrations.transformers.TrackerCallback(statistics(), **options)


def test_transformers_trains_and_records_what_it_trains(tmp_path):
    alone, model, callback = Model(), Model(), hugging_callback(path=tmp_path / "u.npz")
    hugging_trainer(tmp_path, alone).train()
    hugging_trainer(tmp_path, model, callback).train()
    assert torch.equal(alone.layer.weight, model.layer.weight)
    path = callback.tracker.trajectory()
    assert path.names == NAMES
    assert path.steps.tolist() == list(range(3 * BATCHES + 1))
    weights = torch.stack([*model.seen, model.layer.weight.detach()])
    assert torch.equal(weights_of(path), weights)
    # the default schedule: linearly to 0
    rates = 0.05 * (1 - torch.arange(30, dtype=torch.float64) / 30)
    assert torch.allclose(path.times[1:], rates.cumsum(0), rtol=1e-12)
    assert path.metadata["parameters"]["optimizer"] == "SGD"
    assert same(tl.Trajectory.load(tmp_path / "u.npz"), path)


def test_a_language_model_with_a_warm_up(tmp_path):
    config = transformers.GPT2Config(
        vocab_size=7, n_positions=5, n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    assert model.num_parameters() < 400
    tokens = torch.randint(7, (8, 5))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    callback = tl.integrations.transformers.TrackerCallback(
        {"first": lambda p: p["transformer.wte.weight"][0]}
    )
    trainer = hugging_trainer(tmp_path, model, callback, max_steps=6, warmup_steps=2)
    trainer.train_dataset = rows
    trainer.train()
    path = callback.tracker.trajectory()
    assert path.steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert path.times[:2].tolist() == [0.0, 0.0]
    last = model.transformer.wte.weight.detach()[0]
    assert torch.equal(path.final.float(), last)


def logged(folder):
    """Options of a Trainer that reports to TensorBoard and saves checkpoints."""
    return {
        "output_dir": str(folder),
        "report_to": "tensorboard",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 7,
    }


@pytest.fixture(scope="module")
def hugging_whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model, callback = Model(), hugging_callback()
    hugging_trainer(folder, model, callback, **logged(folder)).train()
    return folder, model.layer.weight.detach(), callback.tracker.trajectory()


def runs_of(folder):
    """The runs of trainings with one output_dir, in order: theirs, and the statistics' folders."""
    runs = sorted((folder / "runs").iterdir(), key=lambda run: run.stat().st_ctime_ns)
    return [(run, sorted(run.glob("measured*"))) for run in runs]


def test_statistics_are_a_run_beside_the_trainers_scalars(hugging_whole):
    folder, _, path = hugging_whole
    ((theirs, (ours,)),) = runs_of(folder)
    assert [value for _, value in shown(ours)["norm"]] == path["norm"].float().tolist()
    assert len(shown(theirs)["train/loss"]) == 3 * BATCHES
    assert same(tl.Trajectory.load(ours / "recorded.rows"), path)


@pytest.mark.parametrize("given", [False, True])
def test_a_second_training_leaves_the_first_ones_curves(monkeypatch, tmp_path, given):
    """Each in its own run; in one that the environment names, beside each other."""
    if given:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs" / "all"))
    paths = []
    for rate in (0.05, 0.01):
        callback = hugging_callback()
        options = {"learning_rate": rate, **logged(tmp_path)}
        hugging_trainer(tmp_path, Model(), callback, **options).train()
        paths.append(callback.tracker.trajectory())
    folders = [folder for _, found in runs_of(tmp_path) for folder in found]
    curves = [[value for _, value in shown(folder)["norm"]] for folder in folders]
    expected = [path["norm"].float().tolist() for path in paths]
    assert sorted(curves) == sorted(expected)
    assert expected[0] != expected[1]
    # the first one goes on in its own
    callback = hugging_callback()
    trainer = hugging_trainer(tmp_path, Model(), callback, **logged(tmp_path))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-28"))
    kept = [[value for _, value in shown(folder)["norm"]] for folder in folders]
    assert expected[0] in kept


@pytest.mark.parametrize("moved", [False, True])
def test_transformers_resumes_without_a_gap_or_a_double(hugging_whole, tmp_path, moved):
    """In the old folder, or from a checkpoint that was taken elsewhere under another name."""
    folder = tmp_path / "first"
    with pytest.raises(Stop):
        hugging_trainer(folder, Model(19), hugging_callback(), **logged(folder)).train()
    checkpoint = folder / "checkpoint-14"
    if moved:
        folder, checkpoint = tmp_path / "second", checkpoint.rename(tmp_path / "taken")
        shutil.rmtree(tmp_path / "first")
    model, callback = Model(), hugging_callback(path=tmp_path / "u.npz")
    trainer = hugging_trainer(folder, model, callback, **logged(folder))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    whole, weights, path = hugging_whole
    assert torch.equal(model.layer.weight, weights)
    assert same(tl.Trajectory.load(tmp_path / "u.npz"), path)
    # in the run folder of the Trainer that went on
    (_, (old,)), (_, (new,)) = runs_of(whole)[-1], runs_of(folder)[-1]
    assert shown(new) == shown(old)
    # and the checkpoints that it goes on to make are good ones
    callback = hugging_callback()
    trainer = hugging_trainer(folder, Model(), callback, **logged(folder))
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-28"))
    assert same(callback.tracker.trajectory(), path)


def test_a_checkpoint_of_transformers_without_recorded_steps(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 10}
    hugging_trainer(tmp_path, Model(), **options).train()
    callback = hugging_callback()
    trainer = hugging_trainer(tmp_path, Model(), callback, **options)
    with pytest.warns(RuntimeWarning, match="its step 0 is the trainer's step 10"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert len(callback.tracker.trajectory()) == 21


def test_an_exception_leaves_the_recording_of_transformers(tmp_path):
    model, callback = Model(stop_at=6), hugging_callback(path=tmp_path / "u.npz")
    trainer = hugging_trainer(tmp_path, model, callback)
    with pytest.raises(Stop):
        trainer.train()
    assert not (tmp_path / "u.npz").exists()
    # as at the end of the program
    del trainer, callback
    gc.collect()
    assert tl.Trajectory.load(tmp_path / "u.npz").steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_training_begun_again_after_an_exception(tmp_path):
    model, callback = Model(stop_at=6), hugging_callback(path=tmp_path / "u.npz")
    trainer = hugging_trainer(tmp_path, model, callback)
    with pytest.raises(Stop):
        trainer.train()
    first = callback.tracker
    trainer.train()
    assert first.step == 5
    assert len(tl.Trajectory.load(tmp_path / "u.npz")) == 3 * BATCHES + 1


def test_an_early_stop_ends_the_recording_of_transformers(tmp_path):
    callback = hugging_callback(path=tmp_path / "u.npz")
    stop = transformers.EarlyStoppingCallback(early_stopping_patience=2)
    hugging_trainer(
        tmp_path,
        Model(),
        callback,
        stop,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        label_names=["x"],
    ).train()
    # the first evaluation is the best one, the third of a constant loss the last
    assert len(tl.Trajectory.load(tmp_path / "u.npz")) == 13


def test_transformers_accumulates_gradients(tmp_path):
    model, callback = Model(), hugging_callback()
    options = {"gradient_accumulation_steps": 5, "max_steps": 4}
    hugging_trainer(tmp_path, model, callback, **options).train()
    path = callback.tracker.trajectory()
    assert path.steps.tolist() == list(range(5))
    weights = torch.stack([*model.seen[::5], model.layer.weight.detach()])
    assert torch.equal(weights_of(path), weights)


def test_what_the_callback_of_transformers_refuses(tmp_path):
    twice = hugging_trainer(tmp_path, Model(), hugging_callback(), hugging_callback())
    with pytest.raises(ValueError, match="expected one TrackerCallback in a Trainer, got 2"):
        twice.train()
    probe = tl.Probe(lambda output, x: output.mean(), lambda n, generator=None: None)
    options = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    best = hugging_trainer(tmp_path, Model(), hugging_callback(probe=probe), **options)
    with pytest.raises(ValueError, match="load_best_model_at_end=False"):
        best.train()
    options = {"save_strategy": "steps", "save_steps": 10}
    hugging_trainer(tmp_path, Model(), hugging_callback(), **options).train()
    options["restore_callback_states_from_checkpoint"] = True
    restored = hugging_trainer(tmp_path, Model(), hugging_callback(), **options)
    with pytest.raises(TypeError, match="recordings are continued without it"):
        restored.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


# --- Fabric and Accelerate -----------------------------------------------------------------------


def naive(model, optimizer, backward, accumulate=contextlib.nullcontext):
    """Train; returns the weights before the first step and after each."""
    weights = [model.weight.detach().clone()]
    for (x,) in batches():
        with accumulate(model):
            backward(model(x).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model.weight.detach().clone())
    return torch.stack(weights)


def ready(wrap):
    """A model and an optimizer, prepared by a library."""
    model = initialised(torch.nn.Linear(6, 2, bias=False))
    return wrap(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5))


def test_track_works_in_fabric(tmp_path):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    alone = naive(*ready(fabric.setup), fabric.backward)
    model, optimizer = ready(fabric.setup)
    with tl.track(model, optimizer, statistics("weight"), path=tmp_path / "u.npz") as tracker:
        assert torch.equal(naive(model, optimizer, fabric.backward), alone)
    path = tracker.trajectory()
    assert torch.equal(weights_of(path), alone)
    assert path.metadata["parameters"]["optimizer"] == "SGD"


def test_track_works_in_accelerate(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    run = {"backward": accelerator.backward, "accumulate": accelerator.accumulate}
    alone = naive(*ready(accelerator.prepare), **run)
    model, optimizer = ready(accelerator.prepare)
    with tl.track(model, optimizer, statistics("weight"), path=tmp_path / "u.npz") as tracker:
        assert torch.equal(naive(model, optimizer, **run), alone)
    path = tracker.trajectory()
    # two batches a step
    assert path.steps.tolist() == list(range(BATCHES // 2 + 1))
    assert torch.equal(weights_of(path), alone[::2])
    assert path.metadata["parameters"]["optimizer"] == "SGD"


@pytest.mark.parametrize("library", ["fabric", "accelerate"])
def test_fabric_and_accelerate_save_and_load_a_tracker(tmp_path, library):
    """As they do model and optimizer."""

    def begin():
        """What a program does before its loop."""
        if library == "fabric":
            fabric = lightning.Fabric(accelerator="cpu", devices=1)
            model, optimizer = ready(fabric.setup)
            tracker = tl.track(model, optimizer, statistics("weight"))
            parts = {"model": model, "optimizer": optimizer, "tracker": tracker}
            keep = functools.partial(fabric.save, tmp_path / "state", parts)
            load = functools.partial(fabric.load, tmp_path / "state", parts)
        else:
            accelerator = accelerate.Accelerator(cpu=True)
            model, optimizer = ready(accelerator.prepare)
            tracker = tl.track(model, optimizer, statistics("weight"))
            accelerator.register_for_checkpointing(tracker)
            keep = functools.partial(accelerator.save_state, str(tmp_path / "state"))
            load = functools.partial(accelerator.load_state, str(tmp_path / "state"))
        return (
            functools.partial(naive, model, optimizer, torch.Tensor.backward),
            keep,
            load,
            tracker,
        )

    train, *_, whole = begin()
    for _ in range(3):
        train()
    train, keep, _, _ = begin()
    train()
    keep()
    train, _, load, tracker = begin()
    load()
    for _ in range(2):
        train()
    assert tracker.step == 3 * BATCHES
    assert same(tracker.trajectory(), whole.trajectory())


def test_a_probe_in_fabric_and_accelerate():
    problem = tl.GaussianMixture.binary(dim=20, snr=2.0)
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    for wrap in (fabric.setup, accelerate.Accelerator(cpu=True).prepare):
        model = problem.model()
        model, optimizer = wrap(model, torch.optim.SGD(model.parameters(), lr=0.05))
        probe = tl.Probe(problem.loss, problem.sample, every=2, samples=8)
        with tl.track(model, optimizer, problem.statistics, probe=probe) as tracker:
            for _ in range(4):
                x, y = problem.sample(1)
                optimizer.zero_grad()
                problem.loss(model(x), y).backward()
                optimizer.step()
        assert tracker.explanation().change.values.isfinite().all()


# --- extras --------------------------------------------------------------------------------------


def test_libraries_are_imported_on_demand_and_missed_by_name():
    program = """
import sys
import torchlimits as tl
tl.integrations
optional = {"accelerate", "lightning", "pytorch_lightning", "pandas", "transformers", "wandb"}
assert not optional & set(sys.modules), optional & set(sys.modules)
for name in ("lightning", "transformers"):
    sys.modules[name] = None  # as if it were not installed
    try:
        getattr(tl.integrations, name)
    except ImportError as error:
        assert f"pip install 'torchlimits[{name}]'" in str(error), error
    else:
        raise AssertionError(name)
try:
    tl.integrations.keras
except AttributeError:
    print("good")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "good\n"
