"""Checks that only one framework is installed, and that its losses work.

    python tests/alone.py FRAMEWORK [native]

With ``native``, torch's CPU kernels must have been built; without it, they must not.

A script rather than a test, since pytest is not installed in that environment.
"""

import importlib
import sys
from importlib.util import find_spec

FRAMEWORKS = {"jax", "keras", "torch"}
# Packages that may be installed beside the framework. If they are not, the import must work all the same.
OTHERS = {"jax": ["pandas", "plotly"], "torch": ["numpy", "pandas", "plotly", "scipy", "sklearn"]}
LOGITS, LABELS = [[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]], [0, 1]


def main(framework: str, native: str = "") -> None:
    installed = {name for name in FRAMEWORKS if find_spec(name)}
    if installed != {framework}:
        sys.exit(f"only {framework} should be installed; found {installed}.")
    for other in FRAMEWORKS - installed:
        try:
            importlib.import_module(f"polylosses.{other}")
        except ImportError as error:
            if f"pip install 'polylosses[{other}]'" not in str(error):
                raise
        else:
            sys.exit(f"polylosses.{other} should not import without {other}.")
    sys.modules.update(dict.fromkeys(OTHERS[framework]))  # type: ignore[arg-type]
    backend = importlib.import_module(f"polylosses.{framework}")
    if framework == "torch":
        import torch  # noqa: PLC0415

        given = torch.tensor(LOGITS), torch.tensor(LABELS)
        found = backend.poly_cross_entropy(*given, epsilon=2.0).item()
        try:
            backend.poly_cross_entropy(*given, implementation="native")
        except ValueError as error:
            if native or "not built when polylosses was installed" not in str(error):
                raise
        else:
            if not native:
                sys.exit("there should be no kernels.")
    else:
        import jax.numpy as jnp  # noqa: PLC0415

        labels = jnp.array(LABELS)
        found = float(backend.poly_cross_entropy_with_integer_labels(jnp.array(LOGITS), labels, epsilon=2.0).mean())
    if abs(found - 0.277942) > 1e-6:
        sys.exit(f"the loss is {found}.")
    print(f"polylosses.{framework} works alone: {found:.5f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
