"""Every example script runs and learns, and its trainer computes the right losses and gradients.

Warnings are ignored here, since most come from third parties.
"""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import polylosses
from polylosses.torch import (
    PolyBCEWithLogitsLoss,
    PolyCrossEntropyLoss,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
    poly_from_nll,
    poly_softmax,
)
from polylosses.tune import study
from polylosses.tune.plan import Plan, by_name

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _random_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the random state, since trainers set global seeds, and keeps Hugging Face libraries offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    numpy_state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        yield
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.use_deterministic_algorithms(False)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The accuracy that a run has to reach. Chance level is 0.1, 0.1, 0.1, 0.33, 0.33, 0.63 for the last two, and 0.1 for
# the others.
LEARNED = {
    "plain_loop": 0.85,
    "lightning_digits": 0.85,
    "transformers_causal_lm": 0.95,
    "transformers_classifier": 0.9,
    "monai_segmentation": 0.7,
    "trl_token_log_probabilities": 0.95,
    "equinox_digits": 0.85,
    "jax_epsilon_sweep": 0.9,
    "keras_digits": 0.85,
    "xgboost_early_stopping": 0.93,
    "lightgbm_epsilon_grid": 0.92,
    "catboost_categories": 0.88,
}


TRAINERS = ("lightning", "transformers", "monai", "trl", "xgboost", "lightgbm", "catboost")


def needs(name: str) -> list[pytest.MarkDecorator]:
    """Marks for tests that need a trainer's package, which [dev-slow] installs."""
    missing = importlib.util.find_spec(name) is None
    return [pytest.mark.slow, pytest.mark.skipif(missing, reason=f"{name} is not installed")]


def marks_of(example: str) -> list[pytest.MarkDecorator]:
    """All examples but the plain loop are slow."""
    for trainer in TRAINERS:
        if example.removeprefix("tune_").startswith(trainer):
            return needs(trainer)
    return [] if example == "plain_loop" else [pytest.mark.slow]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in LEARNED])
def test_it_learns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = load(name)
    if name == "jax_epsilon_sweep":  # fewer seeds, with the same training for each
        monkeypatch.setattr(example, "SEEDS", example.SEEDS[:2])
    if name == "transformers_classifier":
        monkeypatch.setattr(example, "train", partial(example.train, num_train_epochs=8))
    assert example.main() >= LEARNED[name]
    assert re.search(r": .*\d\.\d{3}", capsys.readouterr().out)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.slow
def test_the_loss_of_a_network_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("tune_cnn")
    monkeypatch.setattr(example, "EPOCHS", 3)
    given = {"lr": [0.01], "dropout": [0.0, 0.3]}
    result = study(example.train, epsilons=[1.0], losses=["focal(1)"], parameters=given, points=2, repeats=2)
    assert result.table.score.min() > 0.9
    assert set(result.trials.dropout) == {0.0, 0.3}
    assert "and 497 test rows" in result.sentence


TUNED = {"tune_cnn": 3, "tune_lightning": 3, "tune_transformers": 5, "tune_equinox": 100, "tune_lightgbm": 30}


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in TUNED])
def test_its_training_depends_on_the_loss_and_the_seed_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load(name)
    length = next(name for name in ("EPOCHS", "STEPS", "ROUNDS") if hasattr(example, name))
    monkeypatch.setattr(example, length, TUNED[name])
    plan = Plan(by_name(["mean_absolute_error"]), [{}], repeats=2, most_seeds=4, seed=0)

    def right(loss: str, repeat: int) -> np.ndarray:
        scores = example.train(plan.trial("selection", loss, 0, repeat))
        return np.concatenate([np.asarray(scores["validation"]), np.asarray(scores["test"])])

    first = right("cross-entropy", 0)
    assert np.array_equal(right("cross-entropy", 0), first)
    assert not np.array_equal(right("mean_absolute_error", 0), first)
    assert not np.array_equal(right("cross-entropy", 1), first)


# A point of the parameters that the example names, and the number of test rows.
STUDIED: dict[str, tuple[dict[str, Any], int]] = {
    "tune_lightning": ({"lr": [0.01], "width": [32]}, 497),
    "tune_transformers": ({"lr": [0.005], "dropout": [0.1]}, 497),
    "tune_equinox": ({"lr": [0.01], "dropout": [0.3]}, 497),
    "tune_lightgbm": ({"learning_rate": [0.2], "num_leaves": [8]}, 169),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in STUDIED])
def test_the_loss_of_a_framework_is_tuned(name: str) -> None:
    parameters, rows = STUDIED[name]
    result = study(load(name).train, epsilons=[1.0], parameters=parameters, points=1, repeats=2)
    assert not result.trials.error.any()
    assert result.table.score.min() > 0.85
    assert f"and {rows} test rows" in result.sentence


class TestLightgbm:
    """The objective's gradient is that of the loss; its curvature is positive, and right for cross-entropy."""

    pytestmark = needs("lightgbm")

    @pytest.mark.parametrize(
        "loss", [polylosses.cross_entropy(), polylosses.poly1(2.0), polylosses.focal(2.0)], ids=str
    )
    def test_its_gradient(self, loss: polylosses.Polynomial) -> None:
        margin, labels = np.linspace(-6, 6, 25), np.arange(25) % 2
        data = SimpleNamespace(get_label=lambda: labels)
        gradient, curvature = load("tune_lightgbm").objective(loss)(margin, data)
        z = torch.tensor(margin, requires_grad=True)
        (right,) = torch.autograd.grad(
            poly_binary_cross_entropy_with_logits(z, torch.tensor(labels) * 1.0, reduction="sum", polynomial=loss), z
        )
        np.testing.assert_allclose(gradient, right, rtol=1e-9)
        assert (curvature > 0).all()
        if loss == polylosses.cross_entropy():
            p = 1 / (1 + np.exp(-margin))
            np.testing.assert_allclose(curvature, p * (1 - p), rtol=1e-9)


def test_every_example_is_tested_and_says_how_to_run_it() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*LEARNED, "skorch_grid_search", "class_sharded_head", *TUNED}
    for name in names:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert f"examples/{name}.py" in text
        assert re.search(r"pip install 'polylosses\[(torch|jax|keras|tune|boosting|jax,tune)\]'", text)


def test_as_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "plain_loop.py"), run_name="__main__")
    said = r"accuracy on held-out digits: 0\.\d+ before training, 0\.[89]\d+ after"
    assert re.search(said, capsys.readouterr().out)


@pytest.mark.slow
def test_as_a_script_of_two_processes() -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "examples/class_sharded_head.py"],
        cwd=EXAMPLES.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = r"loss: \d\.\d+ before training, 0\.[0-3]\d+ after, on 2 processes"
    assert re.search(said, done.stdout), done.stdout


class TestPlainLoop:
    """The gradients of micro-batches add up to those of the batch."""

    @pytest.mark.parametrize("sizes", [[12], [6, 6], [5, 5, 2], [1] * 12], ids=str)
    def test_micro_batches_are_one_batch(self, sizes: list[int]) -> None:
        torch.manual_seed(0)
        x, y = torch.randn(12, 4, dtype=torch.float64), torch.randint(3, (12,))
        y[[0, 5, 6, 7, 8, 9]] = -100  # in [5, 5, 2], the whole second micro-batch is ignored
        weight = None
        for epsilon, gamma in ((0.0, 0.0), (2.0, 0.0), (-1.0, 0.5)):
            model = nn.Linear(4, 3, dtype=torch.float64)
            whole = PolyCrossEntropyLoss(weight, epsilon=epsilon, gamma=gamma)(model(x), y)
            right = torch.autograd.grad(whole, list(model.parameters()))
            criterion = PolyCrossEntropyLoss(weight, epsilon=epsilon, gamma=gamma, reduction="sum")
            parts = list(zip(torch.split(x, sizes), torch.split(y, sizes), strict=True))
            total = load("plain_loop").backward(model, criterion, parts)
            assert total == pytest.approx(whole.item(), rel=1e-13)
            found = [parameter.grad for parameter in model.parameters()]
            torch.testing.assert_close(found, list(right), rtol=1e-12, atol=1e-14)


class TestTransformers:
    """With epsilon 0, the Trainer makes the same steps as with the model's own loss."""

    pytestmark = needs("transformers")

    # The classifier's own loss ignores gradient accumulation: with three steps, its gradient is three times as large.
    @pytest.mark.parametrize(
        ("name", "steps"),
        [("transformers_causal_lm", 1), ("transformers_causal_lm", 3), ("transformers_classifier", 1)],
    )
    def test_without_epsilon_it_is_the_trainers_own_loss(self, name: str, steps: int, tmp_path: Path) -> None:
        example = load(name)
        ends = []
        for loss in (None, lambda *given, **more: example.poly_loss(*given, **more, epsilon=0.0)):
            model = example.make_model()
            trainer = example.train(
                str(tmp_path), model, loss, gradient_accumulation_steps=steps, max_steps=6, logging_steps=1
            )
            logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            ends.append((torch.tensor(logged), torch.cat([p.detach().flatten() for p in model.parameters()])))
        torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-4, atol=1e-4)  # the log is rounded
        torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-4, atol=2e-5)  # Adam divides by small numbers

    @pytest.mark.parametrize("name", ["transformers_causal_lm", "transformers_classifier"])
    def test_accumulated_steps_are_whole_ones(self, name: str, tmp_path: Path) -> None:
        """The loss and gradient of the first step are the same for 24 rows in one batch or in three."""
        example = load(name)
        seen = []
        for steps in (1, 3):
            model = example.make_model()
            for layer in model.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = 0.0
            trainer = example.train(
                str(tmp_path),
                model,
                example.poly_loss,
                gradient_accumulation_steps=steps,
                per_device_train_batch_size=24 // steps,
                max_steps=1,
                logging_steps=1,
            )
            seen.append(trainer.state.log_history[0])
        for key in ("loss", "grad_norm"):
            assert float(seen[0][key]) == pytest.approx(float(seen[1][key]), rel=1e-3), key


class TestSkorch:
    """skorch recognises the criterion, scikit-learn can search over its options, and predictions are probabilities."""

    pytestmark = needs("skorch")

    def test_grid_search(self, capsys: pytest.CaptureFixture[str]) -> None:
        search = load("skorch_grid_search").main()
        assert search.best_score_ > 0.85
        assert set(search.best_params_) == {"criterion__epsilon"}
        assert capsys.readouterr().out.count("accuracy 0.") == 3
        x = np.random.default_rng(0).random((5, 64), dtype=np.float32)
        probabilities = search.predict_proba(x)
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
        logits = search.best_estimator_.module_(torch.tensor(x))
        np.testing.assert_allclose(probabilities, logits.softmax(1).detach().numpy(), rtol=1e-5)

    def test_the_posterior_instead_of_the_softmax(self) -> None:
        """``predict_nonlinearity`` may be ``poly_softmax``, which gives the class posterior of the loss."""
        import skorch  # noqa: PLC0415

        net = skorch.NeuralNetClassifier(
            nn.Linear(4, 3),
            criterion=PolyCrossEntropyLoss,
            criterion__epsilon=2.0,
            predict_nonlinearity=lambda logits: poly_softmax(logits, 1, epsilon=2.0),
            train_split=None,
            verbose=0,
            max_epochs=2,
        )
        random = np.random.default_rng(0)
        x = random.random((12, 4), dtype=np.float32)
        net.fit(x, random.integers(0, 3, 12))
        logits = net.module_(torch.tensor(x))
        np.testing.assert_allclose(
            net.predict_proba(x), poly_softmax(logits, 1, epsilon=2.0).detach().numpy(), rtol=1e-6
        )

    @pytest.mark.parametrize(
        "chosen", [{}, {"epsilon": 1.0}, {"epsilon": 2.0, "gamma": 0.5}, {"polynomial": "focal"}], ids=str
    )
    def test_cloned_and_pickled(self, chosen: dict[str, Any]) -> None:
        import pickle  # noqa: PLC0415

        import skorch  # noqa: PLC0415
        from sklearn.base import clone  # noqa: PLC0415

        options = {f"criterion__{k}": polylosses.focal() if v == "focal" else v for k, v in chosen.items()}
        net = skorch.NeuralNetClassifier(
            nn.Linear(4, 3), criterion=PolyCrossEntropyLoss, train_split=None, verbose=0, max_epochs=1, **options
        )
        random = np.random.default_rng(0)
        x, y = random.random((12, 4), dtype=np.float32), random.integers(0, 3, 12)
        for copy in (clone(net), pickle.loads(pickle.dumps(net))):
            copy.fit(x, y)
            again = pickle.loads(pickle.dumps(copy)).partial_fit(x, y)
            np.testing.assert_allclose(again.predict_proba(x).sum(1), 1, rtol=1e-6)

    def test_binary(self) -> None:
        import skorch  # noqa: PLC0415

        net = skorch.NeuralNetBinaryClassifier(
            nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)),
            criterion=PolyBCEWithLogitsLoss,
            criterion__epsilon=2.0,
            train_split=None,
            verbose=0,
            max_epochs=2,
        )
        random = np.random.default_rng(0)
        x = random.random((12, 4), dtype=np.float32)
        net.fit(x, random.integers(0, 2, 12).astype(np.float32))
        np.testing.assert_allclose(net.predict_proba(x).sum(1), 1, rtol=1e-6)


class TestMonai:
    """Unlabelled pixels have no gradient, for MONAI's tensor subclass too."""

    pytestmark = needs("monai")

    def test_unlabelled_pixels_have_no_gradient(self) -> None:
        from monai.data import MetaTensor  # noqa: PLC0415

        torch.manual_seed(0)
        label = torch.randint(3, (2, 1, 6, 6))
        label[:, :, ::2] = 255
        for make in (torch.as_tensor, MetaTensor):
            logits = torch.randn(2, 3, 6, 6, requires_grad=True)
            loss = PolyCrossEntropyLoss(ignore_index=255, epsilon=2.0)(make(logits), make(label).squeeze(1))
            (gradient,) = torch.autograd.grad(loss, logits)
            assert (gradient[:, :, ::2] == 0).all()
            assert (gradient[:, :, 1::2] != 0).all()
            kept = poly_cross_entropy(logits[:, :, 1::2], label[:, 0, 1::2], epsilon=2.0)
            torch.testing.assert_close(torch.as_tensor(loss), kept)


class TestTokenLogProbabilities:
    """TRL's loss is the sum of ``-log_probs``, divided by a count."""

    pytestmark = needs("trl")

    def test_without_epsilon_it_is_trls_own_loss(self, tmp_path: Path) -> None:
        from trl import SFTTrainer  # noqa: PLC0415

        example = load("trl_token_log_probabilities")

        class Plain(example.PolyTrainer):  # type: ignore[misc, name-defined]
            epsilon = 0.0

        ends = []
        for trainer in (SFTTrainer, Plain):
            model = example.make_model()
            made = example.train(
                str(tmp_path), model, trainer, gradient_accumulation_steps=2, max_steps=4, logging_steps=1
            )
            logged = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
            ends.append((torch.tensor(logged), torch.cat([p.detach().flatten() for p in model.parameters()])))
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-4)

    def test_it_is_the_loss_of_the_logits(self) -> None:
        from trl.trainer.utils import selective_log_softmax  # noqa: PLC0415

        torch.manual_seed(0)
        tokens = torch.randint(7, (3, 5))
        mask = torch.rand(3, 5) < 0.6
        for dtype in (torch.float64, torch.float32):
            for chosen in ({"epsilon": 2.0}, {"epsilon": -1.0, "gamma": 0.5}, {"epsilon": (1.0, 0.5)}):
                logits = torch.randn(3, 5, 7, dtype=dtype, requires_grad=True)
                losses = poly_from_nll(-selective_log_softmax(logits, tokens), **chosen)
                found = (losses * mask).sum() / mask.sum()
                target = torch.where(mask, tokens, -100)
                right = poly_cross_entropy(logits.transpose(1, 2), target, **chosen)
                torch.testing.assert_close(found, right)
                torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(right, logits))


class TestLanguageModelsPage:
    """The trainers of docs/language-models.md, whose head is computed in chunks, make the right steps."""

    pytestmark = needs("trl")

    @pytest.fixture(scope="class")
    def page(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        page = EXAMPLES.parent / "docs" / "language-models.md"
        code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
        names: dict[str, Any] = {}
        before = Path.cwd()
        os.chdir(tmp_path_factory.mktemp("page"))
        exec(code, names)
        os.chdir(before)
        return names

    @pytest.fixture(autouse=True)
    def _chunked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        linear = importlib.import_module("polylosses.torch.linear")
        monkeypatch.setattr(linear, "_CHUNK_BYTES_ON_CPU", 1)
        monkeypatch.setattr(linear, "_FEWEST_ROWS", 20)

    @pytest.mark.parametrize("steps", [1, 3])
    def test_without_epsilon_it_is_the_models_own_loss(
        self, page: dict[str, Any], steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import Trainer  # noqa: PLC0415

        example = load("transformers_causal_lm")
        plain = type("Plain", (page["PolyTrainer"],), {"options": {"epsilon": 0.0}})
        ends = []
        for trainer in (Trainer, plain):
            monkeypatch.setattr(example, "Trainer", trainer)
            model = example.make_model()
            made = example.train(
                str(tmp_path), model, None, gradient_accumulation_steps=steps, max_steps=6, logging_steps=1
            )
            logged = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
            ends.append((torch.tensor(logged), torch.cat([p.detach().flatten() for p in model.parameters()])))
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-4)  # Adam divides by small numbers

    def test_dft_is_trls(self, page: dict[str, Any], tmp_path: Path) -> None:
        from trl import SFTTrainer  # noqa: PLC0415

        example = load("trl_token_log_probabilities")
        options = {"polynomial": polylosses.mean_absolute_error()}
        of_the_head = type("OfTheHead", (page["PolyHeadSFTTrainer"],), {"options": options})
        ends = []
        for trainer, chosen in ((SFTTrainer, "dft"), (page["PolySFTTrainer"], "nll"), (of_the_head, "nll")):
            model = example.make_model()
            example.train(str(tmp_path), model, trainer, gradient_accumulation_steps=2, max_steps=4, loss_type=chosen)
            ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        for ours in ends[1:]:
            torch.testing.assert_close(ours, ends[0], rtol=1e-4, atol=1e-4)
