"""A bucket with Object Lock: `make ENDPOINT BUCKET MODE` makes it, `versions ENDPOINT BUCKET KEY` tells what is kept of a key."""

import json
import sys

import boto3
from botocore.exceptions import ClientError

what, endpoint, bucket, last = sys.argv[1:]
keys = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
if what == "make":
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": last, "Days": 1}}
    s3.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
else:
    listed = s3.list_object_versions(Bucket=bucket, Prefix=last)
    refused = []
    for version in listed.get("Versions", []):
        try:
            s3.delete_object(Bucket=bucket, Key=last, VersionId=version["VersionId"])
        except ClientError as error:
            refused.append(error.response["Error"]["Code"])
    print(json.dumps({"markers": len(listed.get("DeleteMarkers", [])), "refused": refused}))
