"""The synthetic city of Harmonyland: seeded watchers and citizens, the faults of a real fleet, and ground truth.

city -> render -> faults -> traffic -> send. Every draw comes from the plan's seed; the wall clock enters only as the
`time` written on the wire. Nothing here knows the gateway but by its HTTP door.
"""
