from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]
    DTYPE_INT8: _ClassVar[Dtype]

class StateFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_FORMAT_UNSPECIFIED: _ClassVar[StateFormat]
    STATE_FORMAT_FLOAT16: _ClassVar[StateFormat]
    STATE_FORMAT_INT8: _ClassVar[StateFormat]

class Output(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_UNSPECIFIED: _ClassVar[Output]
    OUTPUT_EMBEDDING: _ClassVar[Output]
    OUTPUT_STATE: _ClassVar[Output]
    OUTPUT_HEADS: _ClassVar[Output]
    OUTPUT_TIMINGS: _ClassVar[Output]
    OUTPUT_ATTENTION: _ClassVar[Output]
    OUTPUT_MASK: _ClassVar[Output]
    OUTPUT_REGION_FEATURE: _ClassVar[Output]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_FLOAT16: Dtype
DTYPE_INT8: Dtype
STATE_FORMAT_UNSPECIFIED: StateFormat
STATE_FORMAT_FLOAT16: StateFormat
STATE_FORMAT_INT8: StateFormat
OUTPUT_UNSPECIFIED: Output
OUTPUT_EMBEDDING: Output
OUTPUT_STATE: Output
OUTPUT_HEADS: Output
OUTPUT_TIMINGS: Output
OUTPUT_ATTENTION: Output
OUTPUT_MASK: Output
OUTPUT_REGION_FEATURE: Output

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("width", "height", "runs")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    runs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., runs: _Optional[_Iterable[int]] = ...) -> None: ...

class Focus(_message.Message):
    __slots__ = ("heads_on", "all_heads", "attention_shift", "zoom", "fovea")
    HEADS_ON_FIELD_NUMBER: _ClassVar[int]
    ALL_HEADS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_SHIFT_FIELD_NUMBER: _ClassVar[int]
    ZOOM_FIELD_NUMBER: _ClassVar[int]
    FOVEA_FIELD_NUMBER: _ClassVar[int]
    heads_on: int
    all_heads: bool
    attention_shift: float
    zoom: float
    fovea: float
    def __init__(self, heads_on: _Optional[int] = ..., all_heads: bool = ..., attention_shift: _Optional[float] = ..., zoom: _Optional[float] = ..., fovea: _Optional[float] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("x0", "y0", "x1", "y1")
    X0_FIELD_NUMBER: _ClassVar[int]
    Y0_FIELD_NUMBER: _ClassVar[int]
    X1_FIELD_NUMBER: _ClassVar[int]
    Y1_FIELD_NUMBER: _ClassVar[int]
    x0: int
    y0: int
    x1: int
    y1: int
    def __init__(self, x0: _Optional[int] = ..., y0: _Optional[int] = ..., x1: _Optional[int] = ..., y1: _Optional[int] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("mask", "focus")
    MASK_FIELD_NUMBER: _ClassVar[int]
    FOCUS_FIELD_NUMBER: _ClassVar[int]
    mask: Mask
    focus: Focus
    def __init__(self, mask: _Optional[_Union[Mask, _Mapping]] = ..., focus: _Optional[_Union[Focus, _Mapping]] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("image", "mask", "focus", "outputs", "expected_fingerprint", "digest", "prompts")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    FOCUS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    mask: Mask
    focus: Focus
    outputs: _containers.RepeatedScalarFieldContainer[Output]
    expected_fingerprint: str
    digest: bytes
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    def __init__(self, image: _Optional[bytes] = ..., mask: _Optional[_Union[Mask, _Mapping]] = ..., focus: _Optional[_Union[Focus, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[Output, str]]] = ..., expected_fingerprint: _Optional[str] = ..., digest: _Optional[bytes] = ..., prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("embedding", "state", "head_scores", "head_weights", "timings", "width", "height", "attention", "region", "mask", "region_feature", "encodings")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HEAD_SCORES_FIELD_NUMBER: _ClassVar[int]
    HEAD_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    REGION_FEATURE_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    embedding: Tensor
    state: Tensor
    head_scores: Tensor
    head_weights: Tensor
    timings: Timings
    width: int
    height: int
    attention: Tensor
    region: Region
    mask: Tensor
    region_feature: Tensor
    encodings: _containers.RepeatedCompositeFieldContainer[EncodeResponse]
    def __init__(self, embedding: _Optional[_Union[Tensor, _Mapping]] = ..., state: _Optional[_Union[Tensor, _Mapping]] = ..., head_scores: _Optional[_Union[Tensor, _Mapping]] = ..., head_weights: _Optional[_Union[Tensor, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., attention: _Optional[_Union[Tensor, _Mapping]] = ..., region: _Optional[_Union[Region, _Mapping]] = ..., mask: _Optional[_Union[Tensor, _Mapping]] = ..., region_feature: _Optional[_Union[Tensor, _Mapping]] = ..., encodings: _Optional[_Iterable[_Union[EncodeResponse, _Mapping]]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode_ms", "queue_ms", "compute_ms")
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    decode_ms: float
    queue_ms: float
    compute_ms: float
    def __init__(self, decode_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ...) -> None: ...

class EncodeStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: int
    request: EncodeRequest
    def __init__(self, id: _Optional[int] = ..., request: _Optional[_Union[EncodeRequest, _Mapping]] = ...) -> None: ...

class EncodeStreamResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    response: EncodeResponse
    error: ItemError
    def __init__(self, id: _Optional[int] = ..., response: _Optional[_Union[EncodeResponse, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class RerankRequest(_message.Message):
    __slots__ = ("embeddings", "head_weights", "states", "expected_fingerprint", "state_scales")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    HEAD_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STATE_SCALES_FIELD_NUMBER: _ClassVar[int]
    embeddings: Tensor
    head_weights: Tensor
    states: Tensor
    expected_fingerprint: str
    state_scales: Tensor
    def __init__(self, embeddings: _Optional[_Union[Tensor, _Mapping]] = ..., head_weights: _Optional[_Union[Tensor, _Mapping]] = ..., states: _Optional[_Union[Tensor, _Mapping]] = ..., expected_fingerprint: _Optional[str] = ..., state_scales: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("scores",)
    SCORES_FIELD_NUMBER: _ClassVar[int]
    scores: Tensor
    def __init__(self, scores: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class ReadoutRequest(_message.Message):
    __slots__ = ("states", "head_weights", "expected_fingerprint", "state_scales")
    STATES_FIELD_NUMBER: _ClassVar[int]
    HEAD_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STATE_SCALES_FIELD_NUMBER: _ClassVar[int]
    states: Tensor
    head_weights: Tensor
    expected_fingerprint: str
    state_scales: Tensor
    def __init__(self, states: _Optional[_Union[Tensor, _Mapping]] = ..., head_weights: _Optional[_Union[Tensor, _Mapping]] = ..., expected_fingerprint: _Optional[str] = ..., state_scales: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class ReadoutResponse(_message.Message):
    __slots__ = ("embeddings",)
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    embeddings: Tensor
    def __init__(self, embeddings: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class LocateQuery(_message.Message):
    __slots__ = ("embedding", "head_weights", "region_feature", "all_heads_embedding", "limit", "threshold", "expected_fingerprint")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    HEAD_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    REGION_FEATURE_FIELD_NUMBER: _ClassVar[int]
    ALL_HEADS_EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    embedding: Tensor
    head_weights: Tensor
    region_feature: Tensor
    all_heads_embedding: Tensor
    limit: int
    threshold: float
    expected_fingerprint: str
    def __init__(self, embedding: _Optional[_Union[Tensor, _Mapping]] = ..., head_weights: _Optional[_Union[Tensor, _Mapping]] = ..., region_feature: _Optional[_Union[Tensor, _Mapping]] = ..., all_heads_embedding: _Optional[_Union[Tensor, _Mapping]] = ..., limit: _Optional[int] = ..., threshold: _Optional[float] = ..., expected_fingerprint: _Optional[str] = ...) -> None: ...

class LocateRequest(_message.Message):
    __slots__ = ("query", "id", "image", "digest")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    query: LocateQuery
    id: int
    image: bytes
    digest: bytes
    def __init__(self, query: _Optional[_Union[LocateQuery, _Mapping]] = ..., id: _Optional[int] = ..., image: _Optional[bytes] = ..., digest: _Optional[bytes] = ...) -> None: ...

class LocateResponse(_message.Message):
    __slots__ = ("id", "location", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    location: Location
    error: ItemError
    def __init__(self, id: _Optional[int] = ..., location: _Optional[_Union[Location, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class Location(_message.Message):
    __slots__ = ("evidence", "peak_x", "peak_y", "boxes", "score", "match", "width", "height")
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    PEAK_X_FIELD_NUMBER: _ClassVar[int]
    PEAK_Y_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    evidence: Tensor
    peak_x: float
    peak_y: float
    boxes: _containers.RepeatedCompositeFieldContainer[LocatedBox]
    score: float
    match: float
    width: int
    height: int
    def __init__(self, evidence: _Optional[_Union[Tensor, _Mapping]] = ..., peak_x: _Optional[float] = ..., peak_y: _Optional[float] = ..., boxes: _Optional[_Iterable[_Union[LocatedBox, _Mapping]]] = ..., score: _Optional[float] = ..., match: _Optional[float] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class LocatedBox(_message.Message):
    __slots__ = ("region", "score")
    REGION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    region: Region
    score: float
    def __init__(self, region: _Optional[_Union[Region, _Mapping]] = ..., score: _Optional[float] = ...) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("model_id", "model_type", "fingerprint", "heads", "hidden_size", "embedding_size", "grid_height", "grid_width", "image_size", "default_heads", "precision", "limits", "state_formats")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_SIZE_FIELD_NUMBER: _ClassVar[int]
    GRID_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    GRID_WIDTH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_HEADS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    STATE_FORMATS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    model_type: str
    fingerprint: str
    heads: int
    hidden_size: int
    embedding_size: int
    grid_height: int
    grid_width: int
    image_size: int
    default_heads: int
    precision: str
    limits: Limits
    state_formats: _containers.RepeatedScalarFieldContainer[StateFormat]
    def __init__(self, model_id: _Optional[str] = ..., model_type: _Optional[str] = ..., fingerprint: _Optional[str] = ..., heads: _Optional[int] = ..., hidden_size: _Optional[int] = ..., embedding_size: _Optional[int] = ..., grid_height: _Optional[int] = ..., grid_width: _Optional[int] = ..., image_size: _Optional[int] = ..., default_heads: _Optional[int] = ..., precision: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., state_formats: _Optional[_Iterable[_Union[StateFormat, str]]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("image_bytes", "image_pixels", "message_bytes")
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    image_bytes: int
    image_pixels: int
    message_bytes: int
    def __init__(self, image_bytes: _Optional[int] = ..., image_pixels: _Optional[int] = ..., message_bytes: _Optional[int] = ...) -> None: ...
