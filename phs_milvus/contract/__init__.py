"""What server and plugin share: values, errors, messages, image bytes and the state codec; neither torch nor Milvus."""
