"""Storage backends, one module each: zarr and webdataset."""
