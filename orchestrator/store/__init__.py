"""Store: object storage or a folder, behind one small interface. Data and run folders are read and written here.

    s3://BUCKET/PREFIX   obstore for every request; boto3 finds region, endpoint, and credentials if there are any
    gs:// and az://      obstore, with its own search for credentials; what is public is read without any, as for s3://
    a folder, file:///   plain files; each write is a temporary file moved into place
    sample://NAME        a read-only folder inside this package

A key is a path below the store's root: parts joined by "/", none of them empty or beginning with ".". Names that begin
with "." are never listed: in a folder they hold temporary files and the lock.

    BadInput             opening: no known address, no folder
    └── StoreError       an operation failed for good, after its retries
        ├── Missing      no object has this key
        └── Changed      the object is not the one that was listed
"""

from orchestrator.store.hints import one_line
from orchestrator.store.interface import Aside, Changed, Missing, Object, Store, StoreError
from orchestrator.store.opening import open_store

__all__ = ["Aside", "Changed", "Missing", "Object", "Store", "StoreError", "one_line", "open_store"]
