"""Speed, measured beside other implementations in the same run."""
