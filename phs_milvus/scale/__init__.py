"""Many pictures: encoding on many machines, and Parquet between the encoders and Milvus."""
