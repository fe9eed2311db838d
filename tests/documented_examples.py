"""Code in the documentation, to be run: blocks of pages, and the examples of docstrings that need a server."""

import doctest
import inspect
import re


def code_blocks(page, language):
    """Return what stands in the blocks of a language on a Markdown page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def run_documented_examples(documented, namespace=None, *, paths=None):
    """Run the examples of a docstring that are skipped elsewhere, for want of a server; return what they leave.

    They run in a namespace, with the paths they name put elsewhere.
    """
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
