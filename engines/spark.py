"""Delta for Spark: the archives with which anybody's Spark reads the lake's tables. Spark itself is a package of Python
(`pip install 'harmonywatch[spark]'`), and there is no server to start."""

from __future__ import annotations

from engines.install import DOWNLOADS, Part, jars

ARCHIVES = DOWNLOADS / "spark"

PART = Part(present=ARCHIVES.is_dir, fetch=lambda: jars("spark.pom.xml", ARCHIVES))


def class_path() -> str:
    """The value of `spark.jars`."""
    return ",".join(str(each) for each in sorted(ARCHIVES.glob("*.jar")))
