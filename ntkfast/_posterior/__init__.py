"""What is behind `ntkfast.posterior` and `ntkfast.selection`.

==============  ================================================================================
``engines``     where arrays are worked on: the compiled operations of the CPU, those of a GPU
``precision``   the precision of what is computed for pairs, by the names that users give
``covariance``  S in its two representations, weight space and function space
``blocks``      the same for kernels with k x k blocks
``moments``     the variance criteria over features without pairs
``coverage``    the kernel before any label, and what candidates cover of it
``disk``        features that stay on disk: psi block by block
``group``       ranks that share a pool: what they tell each other, sums in a fixed order
``pool``        scores and batches where no process has all of psi in memory
``lazy``        the same of criteria whose utilities never grow: d_optimal and coverage
``labels``      labels that are missing
``file``        what `Posterior.save` writes and `Posterior.load` reads
==============  ================================================================================
"""
