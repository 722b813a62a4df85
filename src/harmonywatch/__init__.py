"""harmonywatch: reports go in, alerts come out, the archive answers."""
