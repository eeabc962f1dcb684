"""What pyproject.toml can't say: the kernels are compiled if they can be. All else works without them."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "polylosses.torch._native",
            ["src/polylosses/torch/native.cpp"],
            # Errors of arithmetic are not looked at, so that the compiler may vectorize; nan and infinity stay right.
            # And its calls for filling and copying take longer than the few hundred bytes they are for.
            extra_compile_args=[
                *("-std=gnu++17", "-O3", "-fopenmp"),
                *("-fno-math-errno", "-fno-trapping-math", "-fno-tree-loop-distribute-patterns"),
            ],
            # torch's own threads: its copy of libgomp is loaded already and is the one that is found.
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
)
