"""For every test: on CI a test that was skipped is a failure, because there everything that a test needs is at hand."""

from __future__ import annotations

import os

import pytest
from _pytest.terminal import TerminalReporter


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    assert isinstance(reporter, TerminalReporter)
    if os.environ.get("CI") == "true" and reporter.stats.get("skipped") and exitstatus == pytest.ExitCode.OK:
        reporter.write_line("skipped on CI, where everything is at hand (reasons below)", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
