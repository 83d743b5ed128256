"""Race: which trials are given more epochs, which are stopped, and which configurations get more seeds. Pure.

What is granted is a function of the spec and of the results, computed anew whenever it is asked for. So there is no
state that could be lost: a command that is killed, and its successor on other workers, grant the same.
"""
