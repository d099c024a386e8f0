# The bucket of models, the registry of images and, if wanted, the volume that all pods write.

data "aws_partition" "current" {}

resource "aws_s3_bucket" "models" {
  bucket_prefix = "${var.name}-models-"
  force_destroy = !var.deletion_protection
  tags          = local.tags
}

resource "aws_s3_bucket_public_access_block" "models" {
  bucket                  = aws_s3_bucket.models.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "models" {
  bucket = aws_s3_bucket.models.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

# A deleted or overwritten checkpoint can be restored.
resource "aws_s3_bucket_versioning" "models" {
  bucket = aws_s3_bucket.models.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_policy" "models" {
  bucket     = aws_s3_bucket.models.id
  policy     = data.aws_iam_policy_document.models_bucket.json
  depends_on = [aws_s3_bucket_public_access_block.models]
}

data "aws_iam_policy_document" "models_bucket" {
  statement {
    sid       = "NoPlainHttp"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.models.arn, "${aws_s3_bucket.models.arn}/*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }

  # The role of the pods is useless outside of this network. Operators upload models with roles of their own.
  statement {
    sid       = "PodsOnlyFromTheNetwork"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.models.arn, "${aws_s3_bucket.models.arn}/*"]
    principals {
      type        = "AWS"
      identifiers = [aws_iam_role.models_reader.arn]
    }
    condition {
      test     = "StringNotEquals"
      variable = "aws:SourceVpce"
      values   = [aws_vpc_endpoint.s3.id]
    }
  }
}

resource "aws_ecr_repository" "server" {
  name                 = "${var.name}/sie-server"
  image_tag_mutability = "IMMUTABLE" # a tag that was deployed always names the same image
  force_delete         = !var.deletion_protection
  tags                 = local.tags

  image_scanning_configuration {
    scan_on_push = true
  }

  encryption_configuration {
    encryption_type = "AES256"
  }
}

resource "aws_ecr_lifecycle_policy" "server" {
  repository = aws_ecr_repository.server.name
  policy = jsonencode({
    rules = [{
      rulePriority = 1
      description  = "Keep the newest 20 images"
      selection    = { tagStatus = "any", countType = "imageCountMoreThan", countNumber = 20 }
      action       = { type = "expire" }
    }]
  })
}

resource "aws_efs_file_system" "shared" {
  count           = var.shared_volume ? 1 : 0
  encrypted       = true
  throughput_mode = "elastic"
  tags            = merge(local.tags, { Name = "${var.name}-shared" })
}

resource "aws_security_group" "shared" {
  count       = var.shared_volume ? 1 : 0
  name        = "${var.name}-shared-volume"
  description = "NFS from the nodes to the shared volume"
  vpc_id      = aws_vpc.this.id
  tags        = local.tags

  ingress {
    description     = "NFS from the nodes"
    from_port       = 2049
    to_port         = 2049
    protocol        = "tcp"
    security_groups = [module.cluster.cluster_primary_security_group_id]
  }
}

resource "aws_efs_mount_target" "shared" {
  for_each        = var.shared_volume ? aws_subnet.private : {}
  file_system_id  = aws_efs_file_system.shared[0].id
  subnet_id       = each.value.id
  security_groups = aws_security_group.shared[*].id
}
