"""Rules of Python as BUILD uses them, with Bazel's own and an environment's packages."""

def _once(deps):
    """Labels without repetition: all distributions are one."""
    return {dep: None for dep in deps}.keys()

def py_binary(deps = [], **kwargs):
    """Bazel's own."""
    native.py_binary(main = kwargs["srcs"][0], deps = _once(deps), **kwargs)

def py_library(deps = [], **kwargs):
    """Bazel's own."""
    native.py_library(deps = _once(deps), **kwargs)

def requirement(name):
    """A distribution that setup.py asks for: the interpreter's environment has it."""
    return "//tools/bazel:environment"

def py_test(name, srcs, args, main_module, data = [], deps = [], size = "large", **kwargs):
    """A file of tests, collected by pytest.

    Args:
        name: of the target.
        srcs: the file.
        args: of pytest.
        main_module: "pytest"; Bazel's own rule knows files alone.
        data: files that the tests read.
        deps: what they import.
        size: "large": TensorFlow alone takes ten seconds to load.
        **kwargs: as of Bazel's own rule.
    """
    native.py_test(
        name = name,
        srcs = srcs + ["tools/run_%s.py" % main_module],
        main = "tools/run_%s.py" % main_module,
        args = args + ["-m", "'not slow and not large'", "-p", "no:cacheprovider"],
        data = data,
        deps = _once(deps),
        size = size,
        **kwargs
    )
