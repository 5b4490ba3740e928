"""What a person does to a run: stop, cancel, resume, drill."""
