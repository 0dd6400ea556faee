"""Messages of the contract <-> our types: tensors and model info both ways, requests, and the answers a server writes.

Reading validates, because a message may come from anyone: every `InvalidInput` raised here names the field. What the
client reads of answers is in phs_milvus.client.answers, which checks them against the request and the model.
"""

from phs_milvus.contract.wire.encoding import (
    DIGEST_BYTES,
    MOST_PROMPTS,
    check_outputs,
    count_images,
    count_runs,
    encode_request,
    encodings_to_pb,
    has_mask,
    image_of,
    pointings_of,
    region_from_pb,
    stream_error,
    stream_request,
)
from phs_milvus.contract.wire.info import LEAST_MESSAGE_BYTES, info_from_pb, info_to_pb
from phs_milvus.contract.wire.locating import (
    locate_error,
    locate_image,
    locate_query,
    location_to_pb,
    target_from_pb,
)
from phs_milvus.contract.wire.scanning import scan_inputs, scan_request, scanned_from_pb, scanned_to_pb
from phs_milvus.contract.wire.states import readout_inputs, readout_request, rerank_inputs, rerank_request
from phs_milvus.contract.wire.tensors import tensor_from_pb, tensor_to_pb

__all__ = [
    "DIGEST_BYTES",
    "LEAST_MESSAGE_BYTES",
    "MOST_PROMPTS",
    "check_outputs",
    "count_images",
    "count_runs",
    "encode_request",
    "encodings_to_pb",
    "has_mask",
    "image_of",
    "info_from_pb",
    "info_to_pb",
    "locate_error",
    "locate_image",
    "locate_query",
    "location_to_pb",
    "pointings_of",
    "readout_inputs",
    "readout_request",
    "region_from_pb",
    "rerank_inputs",
    "rerank_request",
    "scan_inputs",
    "scan_request",
    "scanned_from_pb",
    "scanned_to_pb",
    "stream_error",
    "stream_request",
    "target_from_pb",
    "tensor_from_pb",
    "tensor_to_pb",
]
