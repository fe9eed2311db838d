"""Run the examples of docstrings that are skipped elsewhere, since they need a server: here there is one."""

import doctest
import inspect


def run_documented_examples(documented, namespace=None, *, paths=None):
    """Run them in a namespace, with the paths they name put elsewhere; return what they leave in it."""
    text = inspect.getdoc(documented)
    for written, path in (paths or {}).items():
        assert written in text
        text = text.replace(written, str(path))
    test = doctest.DocTestParser().get_doctest(text, dict(namespace or {}), documented.__qualname__, None, 0)
    skipped = [example for example in test.examples if example.options.pop(doctest.SKIP, False)]
    assert skipped
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, verbose=False)
    assert runner.run(test, out=report.append, clear_globs=False).failed == 0, "".join(report)
    return test.globs
