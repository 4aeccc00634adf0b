"""Code that runs inside the Python processes of somebody else's program, which stays unchanged.

1. ``launch`` starts the program with ``startup/`` in front of ``PYTHONPATH``, so that every Python process of
   it runs our ``sitecustomize``, as tracing tools do it.
2. ``startup/sitecustomize`` waits until the process imports torch, and then calls ``start.begin``.
3. ``start`` reads the job and starts the recorder of a capture or of a probe.
4. ``program`` follows what the program does: its DataLoaders, its calls of torch.compile, its variables.
   ``batches`` keeps what its loaders yielded, ``inputs`` finds their rows again in the model's input, ``finder``
   hooks its modules, ``lengths`` finds valid lengths.
5. ``report`` tells the parent process what happened, ``parent`` tells whether that process lives, and ``unhooked``
   finds processes that run torch without the hook.
"""
