"""What `annotator bench` measures. Nothing here is loaded by anything else."""
