"""Makes a bucket on a moto_server with one user for each policy, for an archive in its folder `archive`, and has the server look at every
request from then on."""

import json
import pathlib
import sys
import urllib.request

import boto3

endpoint, bucket, *policies = sys.argv[1:]


def client(service):
    keys = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
    return boto3.client(service, endpoint_url=endpoint, region_name="us-east-1", **keys)


client("s3").create_bucket(Bucket=bucket)
iam, users = client("iam"), []
for path in map(pathlib.Path, policies):
    iam.create_user(UserName=path.stem)
    document = path.read_text().replace("BUCKET/", f"{bucket}/archive/").replace("BUCKET", bucket)
    iam.put_user_policy(UserName=path.stem, PolicyName=path.stem, PolicyDocument=document)
    key = iam.create_access_key(UserName=path.stem)["AccessKey"]
    users.append([key["AccessKeyId"], key["SecretAccessKey"]])
headers = {"Content-Type": "text/plain"}
urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", headers, method="POST")).read()
print(json.dumps(users))
