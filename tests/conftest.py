"""Shared by all tests."""

import os

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("runs")

# A slow machine is no failure; CI tries the same examples every time, so that a landing says something of the change.
settings.register_profile("untimed", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "untimed")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests keep, features among it, goes elsewhere than what the user keeps."""
    os.environ["USL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With USL_REQUIRE_ALL set, as in CI, a skipped test is a failure: the machine was to have everything."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("USL_REQUIRE_ALL") and skipped and exitstatus == 0:
        print(f"\nUSL_REQUIRE_ALL: {len(skipped)} tests were skipped")
        session.exitstatus = 1
