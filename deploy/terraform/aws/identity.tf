# Roles of pods, through EKS Pod Identity: no key is stored in the cluster.

data "aws_iam_policy_document" "pods" {
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]
    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }
  }
}

# Reads models, and nothing else. Used by the driver that mounts the bucket and by the server's own pods.
resource "aws_iam_role" "models_reader" {
  name               = "${var.name}-models-reader"
  assume_role_policy = data.aws_iam_policy_document.pods.json
  tags               = local.tags
}

data "aws_iam_policy_document" "models_reader" {
  statement {
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.models.arn]
  }

  statement {
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.models.arn}/*"]
  }
}

resource "aws_iam_role_policy" "models_reader" {
  name   = "read-models"
  role   = aws_iam_role.models_reader.id
  policy = data.aws_iam_policy_document.models_reader.json
}

resource "aws_eks_pod_identity_association" "server" {
  cluster_name    = module.cluster.cluster_name
  namespace       = var.namespace
  service_account = var.release
  role_arn        = aws_iam_role.models_reader.arn
  tags            = local.tags
}

resource "aws_iam_role" "shared_volume" {
  count              = var.shared_volume ? 1 : 0
  name               = "${var.name}-shared-volume"
  assume_role_policy = data.aws_iam_policy_document.pods.json
  tags               = local.tags
}

resource "aws_iam_role_policy_attachment" "shared_volume" {
  count      = var.shared_volume ? 1 : 0
  role       = aws_iam_role.shared_volume[0].name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AmazonEFSCSIDriverPolicy"
}
