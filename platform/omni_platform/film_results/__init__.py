"""The sweep of the film as pages: tables, pictures and machine-readable rows, all made from one MLflow experiment."""
