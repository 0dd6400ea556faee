"""A store of langchain-milvus finds documents by a text; pointing at something in a picture ranks them.

    python examples/rerank_langchain_milvus.py 127.0.0.1:50051 photos/ street.jpg:40,60,180,220 "a bicycle"

The store's collection, its embeddings and its texts are its own: all that is added is a state in the metadata, once.
"""

import sys
from pathlib import Path

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_milvus import Milvus

from phs_milvus import Encoder, Outputs, PhsError, state
from phs_milvus.integrations.langchain import FocusedRerank

address, folder, pointed_at, text = sys.argv[1:]
# Any embedding of texts, in place of one that makes numbers up.
store = Milvus(
    DeterministicFakeEmbedding(size=64), connection_args={"uri": "./documents.db"}, auto_id=True, drop_old=True
)
with Encoder(address) as encoder:
    paths = sorted(Path(folder).glob("*.jpg"))
    encodings = encoder.encode_many(paths, outputs=Outputs(state=True))
    good = [(path, one) for path, one in zip(paths, encodings, strict=True) if not isinstance(one, PhsError)]
    metadata = [{"source": str(path), "phs_state": state.pack(one.state)} for path, one in good]
    store.add_texts([f"a photo called {path.stem}" for path, _ in good], metadata)

    found = store.similarity_search(text, k=200)
    for document in FocusedRerank(encoder=encoder, top_n=5).compress_documents(found, pointed_at):
        print(f"{document.metadata['relevance_score']:.3f} {document.metadata['source']}")
