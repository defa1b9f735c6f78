"""Many runs at a time: trials of Optuna studies, which one pool starts, watches, stops and restarts."""
