"""Training: the step (loop), what runs it on a cluster (launch), its engine, its checkpoints, its feed."""
