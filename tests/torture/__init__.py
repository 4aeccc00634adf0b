"""Everything that happens to stores on machines that die, disks that rot and data from strangers.

``python -m tests.torture`` runs all of it and prints one table; tests/test_torture.py runs a short form.
"""
