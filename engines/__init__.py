"""Real engines on this machine: Kafka, PostgreSQL, an S3 store, an MQTT broker, for the tests in `tests/cluster` and for
`make cluster`. Nothing of the product imports this package.

One module an engine, each with a class that starts it in a folder given to it, on free ports of the loopback, and never
touches an engine that is installed as a service of the machine. `process.py` is what they share: a server started,
waited for by a condition, stopped, killed, started again on the same data. `install.py` fetches what is missing:
`python -m engines install`. Downloads go to `.engines/`, which git does not see.
"""
