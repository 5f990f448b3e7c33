"""mlflow_slim: smaller models as MLflow runs, measured honestly against the original."""

__version__ = "0.1.0"
