"""The suites of `tests/registry` on a real PostgreSQL, as they stand; what they look for in a file, `test_registry_server`
looks for in the server."""

from __future__ import annotations

from test_registry_audit import *  # noqa: F403
from test_registry_conditions import *  # noqa: F403
from test_registry_glance import *  # noqa: F403
from test_registry_glance import door  # noqa: F401 (a fixture)
from test_registry_keys import *  # noqa: F403
from test_registry_members import *  # noqa: F403
from test_registry_processes import *  # noqa: F403

del test_the_database_itself_refuses_to_change_the_audit  # noqa: F821
del test_neither_a_key_nor_anything_like_it_is_in_the_file_or_a_log  # noqa: F821
del test_a_stored_hash_is_no_key  # noqa: F821
