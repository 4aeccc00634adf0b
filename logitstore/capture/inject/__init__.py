"""Into somebody else's program, unchanged: what runs in every Python process that a command starts.

``startup/`` goes in front of ``PYTHONPATH``; the interpreter runs its ``sitecustomize`` first, as it does for
tracing tools. That waits until the process imports torch, then hands over to ``inside``.
"""
