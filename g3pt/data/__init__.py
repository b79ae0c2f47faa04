"""Datasets on disk: records, shards, readers, batches, licences."""
