"""What is behind `ntkfast.posterior`.

==============  ================================================================================
``engines``     where arrays are worked on: the compiled operations of the CPU, those of a GPU
``covariance``  S in its two representations, weight space and function space
``blocks``      the same for kernels with k x k blocks
``labels``      labels that are missing
``lock``        threads that share a posterior take turns
``file``        what `Posterior.save` writes and `Posterior.load` reads
==============  ================================================================================
"""
