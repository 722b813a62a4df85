"""The demo: the whole product on this machine, with a fleet of which everything is known, so that every figure is checked.

`play.py` is the sequence; `live.py` listens as an officer's screen would; `measure.py` takes the machine's figures;
`verdict.py`, pure, compares truth and result. It uses the product through its doors only, as anybody would.
"""
