"""What pyproject.toml can't say: the kernels are compiled if they can be. All else works without them."""

import hashlib
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

SOURCES = sorted(Path("src/polylosses/torch/kernels/cpu").glob("*.?pp"))
# Without what serves a debugger, it is of a third of the size.
FLAGS = ["-std=gnu++17", "-O2", "-g0"]
# What is missing is found out here and not when it is loaded.
LINK = ["-Wl,-z,defs"]
# What is left out if the compiler refuses it, and what the kernels are then.
OPTIONAL = {
    # What the kernels need of -O3, which compiles for half as long again and gives no faster ones.
    "-ftree-vectorize": "slower",
    "-fvect-cost-model=dynamic": "slower",
    "-fpeel-loops": "slower",
    # Errors of arithmetic are not looked at, so that the compiler may vectorize; nan and infinity stay right.
    "-fno-math-errno": "slower",
    "-fno-trapping-math": "slower",
    # Its calls for filling and copying take longer than the few hundred bytes they are for.
    "-fno-tree-loop-distribute-patterns": "slower",
    "-fopenmp-simd": "slower",
    # Built with g++, it uses torch's own threads: their libgomp is loaded already and is the one that is found.
    "-fopenmp": "on one thread",
}
PARALLEL = "void part(int) {}\nvoid probe() {\n#pragma omp parallel for\nfor (int i = 0; i < 2; i++) part(i);\n}\n"
# What loops are compiled for, and flags that this needs: the first of these that the compiler takes. The running
# processor chooses. Clang 19 loses constructors without its flag; GCC 11 lacks the first names. Architectures that know
# none are compiled for once.
LEVELS = '"arch=x86-64-v4","arch=x86-64-v3","default"'
PROCESSORS = (
    (LEVELS, []),
    (LEVELS, ["-Xclang", "-mno-constructor-aliases"]),
    ('"avx512f","avx2","default"', []),
)
CLONES = """
namespace {
struct Twice {
    float value;
    inline __attribute__((always_inline)) explicit Twice(float x) : value(2 * x) {}
};
__attribute__((target_clones(%s))) float twice(const float* x) { return Twice(*x).value; }
}
float probe(const float* x) { return twice(x); }
"""


class BuildKernels(build_ext):
    """A library of C functions is built as if it were a module of Python's, but for its name."""

    def get_ext_filename(self, fullname: str) -> str:  # noqa: D102
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:  # noqa: D102
        # An earlier build's must not stay if this one fails, nor be taken for up to date because it is younger.
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        try:
            self.probe("int probe;\n", FLAGS)
            taken = [flag for flag in OPTIONAL if self.takes(PARALLEL, [flag])]
            for flag in OPTIONAL.keys() - set(taken):
                self.warn(f"the compiler refuses {flag}: the CPU kernels will be {OPTIONAL[flag]}")
            for names, flags in PROCESSORS:
                if self.takes(CLONES % names, flags):
                    ext.define_macros.append(("POLYLOSSES_PROCESSORS", names))
                    taken += flags
                    break
            compile_ = partial(
                self.compiler.compile,
                output_dir=self.build_temp,
                macros=ext.define_macros,
                extra_postargs=FLAGS + taken,
            )
            # Side by side, since each takes 6 to 16 s.
            with ThreadPoolExecutor() as pool:
                objects = [name for names in pool.map(compile_, ([source] for source in ext.sources)) for name in names]
            self.compiler.link_shared_object(
                objects,
                self.get_ext_fullpath(ext.name),
                extra_postargs=LINK + [flag for flag in taken if flag == "-fopenmp"],
                target_lang="c++",
            )
        except CCompilerError as error:
            self.warn(f"the CPU kernels are NOT built, and polylosses will do without them, slower: {error}")

    def takes(self, source: str, flags: list[str]) -> bool:
        """Whether the compiler takes them."""
        try:
            self.probe(source, flags)
        except CCompilerError:
            return False
        return True

    def probe(self, source: str, flags: list[str]) -> None:
        """Compile and link a few lines."""
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "probe.cpp")
            file.write_text(source)
            objects = self.compiler.compile([str(file)], output_dir=directory, extra_postargs=flags)
            library = str(file.with_suffix(".so"))
            self.compiler.link_shared_object(objects, library, extra_postargs=LINK + flags, target_lang="c++")


class Wheel(bdist_wheel):
    """Its tag names no Python, since the library needs none; and no platform, if there is no library."""

    def get_tag(self) -> tuple[str, str, str]:  # noqa: D102
        platform = super().get_tag()[2]
        build_lib = self.get_finalized_command("build_ext").build_lib
        self.root_is_pure = not Path(build_lib, "polylosses/torch/kernels/_native.so").exists()
        return "py3", "none", "any" if self.root_is_pure else platform


# As in native_library.py.
source = hashlib.sha256(b"".join(file.read_bytes() for file in SOURCES)).hexdigest()
kernels = Extension(
    "polylosses.torch.kernels._native",
    [str(file) for file in SOURCES if file.suffix == ".cpp"],
    define_macros=[("POLYLOSSES_SOURCE", f'"{source}"')],
)
setup(
    ext_modules=[kernels] if sys.platform == "linux" else [],  # nobody has run them elsewhere
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
