"""Ray and MLflow live here and nowhere else; each file is one stage of the pipeline."""
