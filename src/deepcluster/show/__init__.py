"""What a fit shows beside the report: pictures, the terminal, TensorBoard."""
