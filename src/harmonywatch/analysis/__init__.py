"""Questions asked of the lake: an analyst's SQL, saved questions, plots. `analyst.py` is the door.

The path of a query: `analyst` (audit) -> `planning` with `bounds`, `spans`, `moments` (one SELECT; which days) -> the
Catalog (which files) -> `answer` (a process of its own) -> `sandbox` -> `engine` with `views` and `vetting` (DuckDB, locked)
-> Arrow batches -> `formats` or `plot`.
"""
