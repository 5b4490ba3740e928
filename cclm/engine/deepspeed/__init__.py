"""The DeepSpeed engine: the only folder that imports deepspeed."""
