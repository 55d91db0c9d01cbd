"""The tree of errors."""

import inspect

from keyheat import errors


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    classes = [
        kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
    ]
    assert all(issubclass(kind, errors.KeyheatError) for kind in classes)
    assert [kind.__name__ for kind in classes if kind.__name__ not in (errors.__doc__ or "")] == []


def test_every_error_has_a_slug_of_its_own() -> None:
    classes = [
        kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
    ]
    assert len({kind.slug for kind in classes}) == len(classes)
