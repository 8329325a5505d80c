"""A bucket with Object Lock: `make ENDPOINT BUCKET -` makes it, `COMPLIANCE ENDPOINT BUCKET KEY` (or GOVERNANCE) keeps the versions of a key
for a day, `versions ENDPOINT BUCKET KEY` tells what is kept of it. Without a default retention: with one, moto wants a header that
Amazon S3 does not."""

import datetime
import json
import sys

import boto3
from botocore.exceptions import ClientError

what, endpoint, bucket, last = sys.argv[1:]
keys = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
if what == "make":
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
elif what in ("COMPLIANCE", "GOVERNANCE"):
    until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    for version in s3.list_object_versions(Bucket=bucket, Prefix=last).get("Versions", []):
        retention = {"Mode": what, "RetainUntilDate": until}
        s3.put_object_retention(Bucket=bucket, Key=last, VersionId=version["VersionId"], Retention=retention)
else:
    refused = []
    for version in s3.list_object_versions(Bucket=bucket, Prefix=last).get("Versions", []):
        try:
            s3.delete_object(Bucket=bucket, Key=last, VersionId=version["VersionId"])
        except ClientError as error:
            refused.append(error.response["Error"]["Code"])
    print(json.dumps({"refused": refused}))
