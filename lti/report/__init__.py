"""Tables and figures of an experiment, beside the paper's numbers."""
