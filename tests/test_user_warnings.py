import _thread
import threading
import warnings

import pytest

from sklearn_msf.runtime.batching import in_batches
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.checkpoints import Checkpoints


def line_of(function):
    """Number of the first line inside a function."""
    return function.__code__.co_firstlineno + 1


def in_package(source, package="sklearn_msf.somewhere.inside"):
    """Run source text as a module of the package."""
    scope = {"__name__": package, "warn_user": warn_user}
    exec(source, scope)
    return scope


def test_a_warning_points_at_the_line_that_called_the_package():
    run = in_package("def deep(): warn_user('help')\ndef run(): deep()")["run"]

    def user():
        run()

    with pytest.warns(UserWarning, match="^help$") as caught:
        user()
    assert (caught[0].filename, caught[0].lineno) == (__file__, line_of(user))


def test_the_packages_between_are_passed_over():
    inner = in_package("def inner(): warn_user('help')")["inner"]
    outer = in_package("def outer(inner): inner()", "sklearn.model_selection")["outer"]

    def user():
        outer(inner)

    with pytest.warns(UserWarning, match="^help$") as caught:
        user()
    assert (caught[0].filename, caught[0].lineno) == (__file__, line_of(user))


def test_the_line_is_the_innermost_one_of_the_user():
    run = in_package("def run(callback): callback()")["run"]
    inside = in_package("def inside(): warn_user('help')")["inside"]

    def callback():
        inside()

    with pytest.warns(UserWarning, match="^help$") as caught:
        run(callback)
    assert (caught[0].filename, caught[0].lineno) == (__file__, line_of(callback))


def test_a_package_with_a_longer_name_is_the_users_own():
    user = in_package("def user(): warn_user('help')", "sklearn_msf_tools")["user"]
    with pytest.warns(UserWarning, match="^help$") as caught:
        user()
    assert caught[0].filename == "<string>"


def test_a_warning_may_have_another_category():
    run = in_package("def run(): warn_user('help', RuntimeWarning)")["run"]
    with pytest.warns(RuntimeWarning, match="^help$"):
        run()


def test_code_of_the_package_at_the_bottom_of_a_thread_can_warn():
    run = in_package("def run(): warn_user('help')")["run"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert [str(warning.message) for warning in caught] == ["help"]


def test_where_nobody_else_is_on_the_stack_the_outermost_line_is_named():
    done = _thread.allocate_lock()
    done.acquire()
    inner = in_package("def inner(): warn_user('help')")["inner"]
    scope = in_package("\n\ndef outer():\n    inner()\n    release()\n")
    scope.update(inner=inner, release=done.release)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Without the module `threading`, whose own frames would be the outermost ones.
        _thread.start_new_thread(scope["outer"], ())
        assert done.acquire(timeout=10)
    assert [warning.lineno for warning in caught] == [4]


def test_a_pass_without_gradients_does_not_hide_the_line():
    class Cuda:
        """In batches on a GPU, which run in the thread of the caller."""

        type = "cuda"

    def user():
        return in_batches(run, 1, 1, Cuda())

    run = in_package("def run(start, size): warn_user('help')")["run"]
    with pytest.warns(UserWarning, match="^help$") as caught:
        user()
    assert (caught[0].filename, caught[0].lineno) == (__file__, line_of(user))


def test_a_real_warning_of_the_package_points_here(tmp_path):
    (tmp_path / "checkpoint-0000001.json").write_text("{}")

    def user():
        return Checkpoints(tmp_path, 1, {}, 0)

    with pytest.warns(UserWarning, match="checkpoint-0000001 is damaged") as caught:
        user()
    assert (caught[0].filename, caught[0].lineno) == (__file__, line_of(user))
