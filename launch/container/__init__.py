"""Recipes for container images (Apptainer, Docker) that hold what the ranks of a job need."""
